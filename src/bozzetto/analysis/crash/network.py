"""A model as a list of steps that bounds can walk, and the places where its neurons crash."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from bozzetto.analysis.crash.activations import Activation, NoSoundBound
from bozzetto.analysis.crash.functions import Source, call_rule
from bozzetto.analysis.crash.rules import (
    Combine,
    Concat,
    Rule,
    SingleRule,
    has_rule,
    registered,
    rule,
)
from bozzetto.batches import copied

# What fx raises; the last two for len() of a tensor and for modules in a plain list.
_UNTRACEABLE = (TraceError, TypeError, RuntimeError, NameError)


class _Tracer(fx.Tracer):
    """Keeps torch's own layers and registered ones whole; looks into everything else.

    A subclass with its own forward is not what it was derived from, and is kept if `opaque` only.
    """

    def __init__(self, *, opaque: bool) -> None:
        super().__init__()
        self.opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = has_rule(m) or (self.opaque and registered(m) is not None)
        return known or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.GraphModule:
    """The model's graph, sharing its parameters.

    Raises:
        TypeError: when the control flow depends on the data, or there are several inputs.
    """
    try:
        graph = _traced(model, opaque=False)
    except _UNTRACEABLE:
        try:
            graph = _traced(model, opaque=True)
        except _UNTRACEABLE as error:
            raise TypeError(
                "crash analysis needs a model whose control flow does not depend on its data; "
                f"{type(model).__name__} could not be traced: {error}"
            ) from error
    used = [n for n in graph.graph.nodes if n.op == "placeholder" and n.users]
    if len(used) != 1:
        raise TypeError(f"crash analysis needs a model of one input; this one uses {len(used)}")
    return graph


def _traced(model: nn.Module, *, opaque: bool) -> fx.GraphModule:
    tracer = _Tracer(opaque=opaque)
    root = nn.Sequential(model) if tracer.is_leaf_module(model, "") else model
    return fx.GraphModule(root, tracer.trace(root))


def call_names(graph: fx.GraphModule) -> dict[fx.Node, str]:
    """A name for every call: the module's path or the function's name, numbered from the second."""
    names: dict[fx.Node, str] = {}
    seen: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op.startswith("call_"):
            base = node.target if isinstance(node.target, str) else node.target.__name__
            seen[base] = seen.get(base, 0) + 1
            names[node] = base if seen[base] == 1 else f"{base}:{seen[base]}"
    return names


@dataclass(frozen=True)
class Step:
    """One operation on activations: its rule, its inputs' positions, its healthy value (b, *s)."""

    name: str
    rule: Rule
    inputs: tuple[int, ...]  # positions of earlier steps; −1 is the network's input
    value: Tensor


@dataclass(frozen=True)
class Network:
    """A model in float64 and evaluation mode, healthy on the inputs x (b, *s)."""

    x: Tensor
    steps: tuple[Step, ...]
    output: int

    @property
    def value(self) -> Tensor:
        """The healthy output, (b, *out)."""
        return self.steps[self.output].value

    def part(self, rows: slice) -> "Network":
        """The same network on some of the inputs."""
        steps = (replace(step, value=step.value[rows]) for step in self.steps)
        return replace(self, x=self.x[rows], steps=tuple(steps))

    def site_names(self) -> list[str]:
        """Where neurons crash by default: every activation that is not the output."""
        return [
            step.name
            for at, step in enumerate(self.steps)
            if isinstance(step.rule, Activation) and at != self.output
        ]


def _execute(graph: fx.GraphModule, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """One node on given arguments."""
    if node.op == "get_attr":
        value: Any = graph
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value
    if node.op == "call_module":
        return graph.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


class _Reader:
    """Runs a graph on one input and writes down its steps."""

    def __init__(self, graph: fx.GraphModule, x: Tensor) -> None:
        self.graph, self.names = graph, call_names(graph)
        self.values: dict[fx.Node, Any] = {}
        self.places: dict[fx.Node, int] = {}
        self.steps: list[Step] = []
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = x if node.users else None
                self.places[node] = -1
            elif node.op != "output":
                self._read(node)

    def _call(self, node: fx.Node, **replaced: Tensor) -> Any:
        """The node's value from copies of its arguments, so that nothing is changed in place."""

        def known(source: fx.Node) -> Any:
            value = replaced.get(source.name, self.values[source])
            return value.clone() if isinstance(value, Tensor) and source in self.places else value

        args, kwargs = fx.map_arg((node.args, node.kwargs), known)
        return _execute(self.graph, node, args, kwargs)

    def _read(self, node: fx.Node) -> None:
        value = self.values[node] = self._call(node)
        sources: list[fx.Node] = []
        fx.map_arg((node.args, node.kwargs), lambda n: sources.append(n) if n in self.places else n)
        if not sources:
            return  # a constant
        if isinstance(value, Tensor):
            inputs = tuple(self.places[source] for source in sources)
            self.places[node] = len(self.steps)
            self.steps.append(Step(self.names[node], self._rule(node, sources), inputs, value))
        elif not isinstance(value, int | float | torch.Size | torch.dtype | torch.device):
            if node.op == "call_module":
                self._module_rule(node)  # says which has no bound
            kind = type(value).__name__
            raise NoSoundBound(f"no sound bound for {node}: it gives a {kind}, not one tensor")

    def _module_rule(self, node: fx.Node) -> Rule:
        module = self.graph.get_submodule(str(node.target))
        if not has_rule(module):
            own = "it has hooks or a forward of its own, " if registered(module) else ""
            raise NoSoundBound(f"no sound bound for {type(module).__name__}: {own}{module!r}")
        return rule(module)

    def _rule(self, node: fx.Node, sources: list[fx.Node]) -> Rule:
        found = self._known_rule(node, sources)
        if not isinstance(found, Combine | Concat) and not self._by_rows(found, node, sources[0]):
            raise NoSoundBound(f"no sound bound for {node}: rows of a batch are mixed")
        return found

    def _by_rows(self, found: SingleRule, node: fx.Node, source: fx.Node) -> bool:
        """Whether the rule gives what the call gave, row by row, for another batch as well."""
        x, y = self.values[source], self.values[node]
        if not x.ndim or not y.ndim:
            return False
        x, y = x[:1].repeat_interleave(2, 0), y[:1].repeat_interleave(2, 0)
        run = found.function if isinstance(found, Activation) else found.run
        pair = run(x)
        return pair.shape == y.shape and bool((pair - y).abs().max() <= 1e-9 * (1 + y.abs().max()))

    def _known_rule(self, node: fx.Node, sources: list[fx.Node]) -> Rule:
        if node.op == "call_module":
            return self._module_rule(node)
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.values.__getitem__)
        first = sources[0]
        leads = bool(node.args) and node.args[0] is first
        source = Source(len(sources) > 1, self.values[first].shape, leads)

        def call(x: Tensor) -> Tensor:
            return self._call(node, **{first.name: x})

        return call_rule(name, args, kwargs, source, call, self.values[node])


def read_network(model: nn.Module, x: Tensor) -> Network:
    """Trace a copy of the model and run it on x.

    Raises:
        NoSoundBound: names the first layer without a sound bound.
        TypeError: when the model cannot be traced, or changes shared activations in place, or x
            are indices.
    """
    if not x.is_floating_point():
        raise TypeError(f"bounds are for inputs that are real numbers; got {x.dtype}")
    twin = copied(model).to(x.device, torch.float64).eval()
    x = x.detach().double()
    graph = trace(twin)
    with torch.no_grad():
        reader = _Reader(graph, x)
        expected = twin(x.clone())
    final = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    if not isinstance(final, fx.Node) or reader.places.get(final, -1) < 0:
        raise TypeError("crash analysis needs a model whose output is one tensor")
    found = Network(x, tuple(reader.steps), reader.places[final])
    if (found.value - expected).abs().max() > 1e-9 * (1 + expected.abs().max()):
        raise TypeError("crash analysis needs activations that are not changed in place")
    return found
