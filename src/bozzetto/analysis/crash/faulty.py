"""Broken networks: many random fault patterns of one model run at once, its healthy prefix once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from bozzetto.analysis.crash.activations import MODULES, NoSoundBound, activation
from bozzetto.analysis.crash.faults import NeuronFault, WeightFault, struck
from bozzetto.analysis.crash.moments import Unit
from bozzetto.analysis.crash.network import call_names, trace
from bozzetto.batches import copied
from bozzetto.linalg import derive_seed

Fault = Callable[[Tensor], Tensor]  # (patterns, b, *s) -> the same
Broken = Callable[[Tensor, float, range, int], Tensor]
"""(x, p, patterns, seed) -> outputs (patterns, b, *out); pattern i of a seed is always the same."""

_BLOCK = 64  # patterns that share a generator


class FaultySites:
    """A model in evaluation mode (a copy) with names for the places where it can fail."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        """Trace the model and see that it takes its batch first.

        Args:
            model: of one input tensor and one output tensor.
            x: inputs, (b, *s).

        Raises:
            TypeError: when it cannot be traced, or rows of its output depend on other rows.
            ValueError: without inputs.
        """
        twin = copied(model).eval()
        for module in twin.modules():
            if hasattr(module, "inplace"):
                module.inplace = False  # type: ignore[assignment]
        self.graph = trace(twin)
        nodes = self.graph.graph.nodes
        self.live = _live(nodes)
        self.nodes = {n: node for node, n in call_names(self.graph).items() if node in self.live}
        self.final = next(node.args[0] for node in nodes if node.op == "output")
        firing = activation_nodes(self.graph)
        self.default = [name for name, node in self.nodes.items() if node in firing]
        self.whole = True  # until it is known that every call gives a tensor
        with torch.no_grad():
            expected = self._expected(x[:2], twin)
            self.whole = not self._only_tensors(x[:2])
            self._check(x[:2], expected)

    def _only_tensors(self, x: Tensor) -> bool:
        run = _Patterns(self, 1, {})
        run.run(x)
        return all(isinstance(run.env[node], Tensor) for node in self.live if node in run.env)

    def _expected(self, x: Tensor, twin: nn.Module) -> Tensor:
        if not len(x):
            raise ValueError("crash needs at least one input in its first batch; got none")
        expected = twin(x)
        if not isinstance(expected, Tensor) or not expected.ndim:
            came = "a single number" if isinstance(expected, Tensor) else type(expected).__name__
            raise TypeError(f"crash needs a model of one output tensor, a row an input; got {came}")
        return expected

    def _check(self, x: Tensor, expected: Tensor) -> None:
        found = self.run(x, 2, {name: lambda value: value for name in self.default})
        if (found - expected).abs().max() > 1e-3 * (1 + expected.abs().max()):
            raise TypeError("crash needs a model whose tensors all have the batch first")

    def chosen(self, names: Iterable[str]) -> list[str]:
        """The names, in the network's order.

        Raises:
            ValueError: for an unknown name.
        """
        wanted = set(names)
        if unknown := sorted(wanted - set(self.nodes)):
            raise ValueError(f"no layers named {unknown}; the network has {list(self.nodes)}")
        return [name for name in self.nodes if name in wanted]

    def failing(self, names: Iterable[str] | None) -> list[str]:
        """Where neurons fail: at the named calls, or by default at activations.

        Raises:
            ValueError: without any such call, or for unknown names.
        """
        if found := self.chosen(self.default if names is None else names):
            return found
        raise ValueError("no layer can fail: the network has no activation before its output")

    def run(self, x: Tensor, patterns: int, faults: Mapping[str, Fault]) -> Tensor:
        """Outputs (patterns, b, *out) for inputs x (b, *s) under faults by site."""
        by_node = {self.nodes[name]: fault for name, fault in faults.items()}
        return _Patterns(self, patterns, by_node).outputs(x)

    def values(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The healthy values (b, *s) at the named calls."""
        run = _Patterns(self, 1, {})
        run.run(x)
        return {name: run.env[self.nodes[name]] for name in names}


def activation_nodes(graph: fx.GraphModule) -> list[fx.Node]:
    """The calls that are activations and not the output."""
    nodes = graph.graph.nodes
    final = next(node.args[0] for node in nodes if node.op == "output")
    return [node for node in nodes if node is not final and _fires(graph, node)]


def _fires(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is an activation."""
    if node.op != "call_module":
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        return node.op.startswith("call_") and name in MODULES
    try:
        activation(graph.get_submodule(str(node.target)))
    except NoSoundBound:
        return False
    return True


def _live(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The calls and inputs that depend on the input."""
    live: set[fx.Node] = set()
    for node in nodes:
        fed = any(source in live for source in node.all_input_nodes)
        if node.op == "placeholder" or (fed and node.op != "output"):
            live.add(node)
    return live


class _Patterns(fx.Interpreter):
    """Repeats the batch for every pattern, from the first faulty call on where it can."""

    def __init__(self, model: FaultySites, patterns: int, faults: Mapping[fx.Node, Fault]) -> None:
        super().__init__(model.graph, garbage_collect_values=False)
        self.model, self.patterns, self.faults = model, patterns, faults
        self.spread: set[fx.Node] = set()

    def outputs(self, x: Tensor) -> Tensor:
        """(patterns, b, *out)."""
        value = self.run(x)
        if self.model.final in self.spread:
            return value.unflatten(0, (self.patterns, len(x)))
        return value.expand(self.patterns, *value.shape)

    def run_node(self, n: fx.Node) -> Any:
        """Run on the rows there are, then disturb."""
        sources = [source for source in n.all_input_nodes if source in self.model.live]
        if self.spread.intersection(sources):
            for source in sources:
                self.env[source] = self._repeated(source, self.env[source])
            self.spread.add(n)
        value = super().run_node(n)
        fault = self.faults.get(n)
        if fault is None and not (n.op == "placeholder" and self.model.whole):
            return value
        value = self._repeated(n, value)
        return (
            value if fault is None else fault(value.unflatten(0, (self.patterns, -1))).flatten(0, 1)
        )

    def _repeated(self, node: fx.Node, value: Tensor) -> Tensor:
        """A node's rows once for every pattern."""
        if node in self.spread:
            return value
        self.spread.add(node)
        return value.repeat(self.patterns, *[1] * (value.ndim - 1))


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
        ValueError: as `FaultySites.failing`, or for a unit that does not exist.
    """
    if unit not in ("neuron", "channel"):
        raise ValueError(f"unit is 'neuron' or 'channel'; got {unit!r}")
    names = sites.failing(layers)

    def run(x: Tensor, p: float, patterns: range, seed: int) -> Tensor:
        faults = {n: neuron_fault(fault, p, unit, patterns, derive_seed(seed, n)) for n in names}
        return sites.run(x, len(patterns), faults if p else {})

    return run


def neuron_fault(fault: NeuronFault, p: float, unit: Unit, patterns: range, seed: int) -> Fault:
    """One layer's faults: which neurons fail depends on the pattern, not on the inputs."""

    def disturbed(value: Tensor) -> Tensor:  # (patterns, b, *s)
        shape = value.shape[2:] if unit == "neuron" else [value.shape[2], *[1] * (value.ndim - 3)]

        def draw(count: int, generator: torch.Generator) -> Tensor:
            return struck(p, count, 1, *shape, generator=generator)

        failed = in_blocks(draw, patterns, value.device, seed)
        output_seed = derive_seed(seed, "output", patterns.start)
        return fault.output(value, failed, torch.Generator(value.device).manual_seed(output_seed))

    return disturbed


def broken_weights(model: nn.Module, fault: WeightFault, layers: Sequence[str] | None) -> Broken:
    """Networks whose stored weights fail: those of the named modules, by default all.

    Raises:
        ValueError: when there are none, or a name has none.
    """
    twin = copied(model).eval()
    weights = {name: w.detach() for name, w in twin.named_parameters() if w.is_floating_point()}
    owners = {name: name.rpartition(".")[0] for name in weights}
    chosen = set(owners.values()) if layers is None else set(layers)
    if (unknown := sorted(chosen - set(owners.values()))) or not weights:
        known = list(dict.fromkeys(owners.values()))
        raise ValueError(f"no weights to break in {unknown}; the modules with weights are {known}")
    weights = {name: w for name, w in weights.items() if owners[name] in chosen}

    def run(x: Tensor, p: float, patterns: range, seed: int) -> Tensor:
        if not p:
            return twin(x).unsqueeze(0).repeat_interleave(len(patterns), 0)
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
