"""Broken networks: many random fault patterns of one model, as one function of inputs."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bozzetto.analysis.crash.faults import NeuronFault, WeightFault
from bozzetto.analysis.crash.faulty import Fault, FaultySites
from bozzetto.analysis.crash.moments import Unit
from bozzetto.linalg import derive_seed

Broken = Callable[[Tensor, float, range, int], Tensor]
"""(x, p, patterns, seed) -> outputs (patterns, b, *out); pattern i of a seed is always the same."""

_BLOCK = 64  # patterns that share a generator


def in_blocks(
    draw: Callable[[int, torch.Generator], Tensor], patterns: range, device: torch.device, seed: int
) -> Tensor:
    """Draws for these patterns, (patterns, …), which do not depend on how they are asked for."""
    first, last = patterns.start // _BLOCK, -(-patterns.stop // _BLOCK)
    blocks = [
        draw(_BLOCK, torch.Generator(device).manual_seed(derive_seed(seed, i)))
        for i in range(first, last)
    ]
    start = patterns.start - first * _BLOCK
    return torch.cat(blocks)[start : start + len(patterns)]


def broken_neurons(
    sites: FaultySites, fault: NeuronFault, layers: Sequence[str] | None, unit: Unit
) -> Broken:
    """Networks whose neurons (or channels) fail at the named calls, by default at activations.

    Raises:
        ValueError: without any such call, or for unknown names.
    """
    names = sites.chosen(sites.default if layers is None else layers)
    if not names:
        raise ValueError("no layer can fail: the network has no activation before its output")

    def run(x: Tensor, p: float, patterns: range, seed: int) -> Tensor:
        faults = {n: neuron_fault(fault, p, unit, patterns, derive_seed(seed, n)) for n in names}
        return sites.run(x, len(patterns), faults if p else {})

    return run


def neuron_fault(fault: NeuronFault, p: float, unit: Unit, patterns: range, seed: int) -> Fault:
    """One layer's faults: which neurons fail depends on the pattern, not on the inputs."""

    def disturbed(value: Tensor) -> Tensor:  # (patterns, b, *s)
        shape = value.shape[2:] if unit == "neuron" else [value.shape[2], *[1] * (value.ndim - 3)]

        def draw(count: int, generator: torch.Generator) -> Tensor:
            return torch.rand(count, 1, *shape, generator=generator, device=value.device)

        failed = in_blocks(draw, patterns, value.device, seed) < p
        output_seed = derive_seed(seed, "output", patterns.start)
        return fault.output(value, failed, torch.Generator(value.device).manual_seed(output_seed))

    return disturbed


def broken_weights(model: nn.Module, fault: WeightFault, layers: Sequence[str] | None) -> Broken:
    """Networks whose stored weights fail: those of the named modules, by default all.

    Raises:
        ValueError: when there are none.
    """
    twin = copy.deepcopy(model).eval()
    weights = {name: w.detach() for name, w in twin.named_parameters() if w.is_floating_point()}
    if layers is not None:
        weights = {n: w for n, w in weights.items() if n.rpartition(".")[0] in set(layers)}
    if not weights:
        modules = [name for name, _ in model.named_modules()]
        raise ValueError(f"no weights to break in {layers}; the model has modules {modules}")

    def run(x: Tensor, p: float, patterns: range, seed: int) -> Tensor:
        faulty = {
            name: in_blocks(
                lambda count, generator, w=w: fault.weights(w, p, count, generator),
                patterns,
                w.device,
                derive_seed(seed, name),
            )
            for name, w in weights.items()
        }

        def one(changed: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(twin, changed, (x,))

        return torch.vmap(one)(faulty)

    return run
