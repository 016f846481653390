"""Which neurons matter: what one crash does to the output, exactly or to first order."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bozzetto.analysis.crash.faulty import Fault, FaultySites
from bozzetto.analysis.crash.measure import read_batch
from bozzetto.batches import Batch


@dataclass(frozen=True)
class CriticalNeurons:
    """Mean |error| of the outputs over all inputs when one neuron crashes, by layer (*s)."""

    scores: Mapping[str, Tensor]

    def rows(self, most: int = 20) -> list[dict[str, object]]:
        """The most critical neurons first."""
        found = [
            (score.item(), name, index)
            for name, scores in self.scores.items()
            for index, score in zip(
                itertools.product(*map(range, scores.shape)), scores.flatten(), strict=True
            )
        ]
        best = sorted(found, key=lambda row: -row[0])[:most]
        return [{"layer": name, "neuron": index, "error": score} for score, name, index in best]

    def figure(self, ax: Any) -> None:
        """Every layer's scores, sorted."""
        for name, scores in self.scores.items():
            ax.plot(scores.flatten().sort(descending=True).values.numpy(), label=name)
        ax.set_xlabel("neurons, most critical first")
        ax.set_ylabel("mean |error| of an output")
        ax.set_yscale("symlog", linthresh=1e-6)
        ax.legend()


def critical_neurons(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    layers: Sequence[str] | None = None,
    by: Literal["crash", "gradient"] = "crash",
    rows: int = 4096,
) -> CriticalNeurons:
    """Score every neuron by the output error that its crash causes.

    Args:
        model: takes one tensor, batch first, and returns one; it is not changed.
        batches: inputs, or (input, target).
        layers: names of calls; by default every activation before the output.
        by: "crash" runs each crash (exact); "gradient" takes |h ∂y/∂h|, a backward pass an output.
        rows: how many crashes × inputs to run at once.

    Raises:
        ValueError: for no batches, no or unknown layers, or an unknown `by`.
    """
    inputs = [read_batch(batch)[0] for batch in batches]
    if not inputs or by not in ("crash", "gradient"):
        raise ValueError(f"need batches and by='crash' or 'gradient'; got {len(inputs)}, {by!r}")
    sites = FaultySites(model, inputs[0])
    names = sites.failing(layers)
    count = sum(map(len, inputs))
    if by == "gradient":
        parts = [_first_order(sites, x, names) for x in inputs]
    else:
        with torch.no_grad():
            parts = [{n: _single_crashes(sites, x, n, rows) for n in names} for x in inputs]
    return CriticalNeurons({n: torch.stack([p[n] for p in parts]).sum(0) / count for n in names})


def dead(alive: Tensor) -> Fault:
    """The fault that keeps what `alive` (patterns, *s) says."""
    return lambda value: value * alive.unsqueeze(1)


def _single_crashes(sites: FaultySites, x: Tensor, name: str, rows: int) -> Tensor:
    """Σ over inputs of the mean |error|, (*s)."""
    shape = sites.values(x[:1], [name])[name].shape[1:]
    healthy = sites.run(x, 1, {})
    scores = []
    for chunk in torch.arange(shape.numel(), device=x.device).split(max(1, rows // len(x))):
        alive = torch.ones(len(chunk), shape.numel(), dtype=torch.bool, device=x.device)
        alive.scatter_(1, chunk.unsqueeze(1), False)
        output = sites.run(x, len(chunk), {name: dead(alive.unflatten(1, shape))})
        scores.append((output - healthy).abs().reshape(*output.shape[:2], -1).mean(2).sum(1))
    return torch.cat(scores).reshape(shape)


def _first_order(sites: FaultySites, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Σ over inputs of the mean over outputs of |h ∂y/∂h|, (*s)."""
    gates: dict[str, Tensor] = {}

    def gate(name: str) -> Fault:
        def fault(value: Tensor) -> Tensor:
            gates[name] = torch.ones_like(value).requires_grad_()
            return value * gates[name]

        return fault

    output = sites.run(x, 1, {name: gate(name) for name in names})[0].reshape(len(x), -1)  # (b, m)
    output = output + 0 * sum(g.sum() for g in gates.values())  # some may not reach the output
    total = {name: torch.zeros_like(gates[name][0, 0]) for name in names}
    for i in range(output.shape[1]):
        slopes = torch.autograd.grad(
            output[:, i].sum(), [gates[n] for n in names], retain_graph=True
        )
        for name, slope in zip(names, slopes, strict=True):
            total[name] = total[name] + slope[0].abs().sum(0) / output.shape[1]
    return total
