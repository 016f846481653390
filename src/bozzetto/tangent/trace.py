"""Read a plain torch module into a program, or say what in it could not be read."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from bozzetto.batches import first_input
from bozzetto.tangent.kernel import Program
from bozzetto.tangent.layers import FUNCTIONS, Reader, Value, read_module
from bozzetto.tangent.program import Input

__all__ = ["UnreadableError", "trace"]


class UnreadableError(ValueError):
    """A module has parts that no rule reads; `parts` names them all."""

    def __init__(self, parts: list[str]) -> None:
        super().__init__("cannot read as a program: " + "; ".join(parts))
        self.parts = parts


def trace(model: nn.Module, example: Tensor) -> Program:
    """The program of a plain module, for inputs shaped like `example`.

    That is (N, d), (N, T, d) or (N, C, H, W), N arbitrary.

    It is read by torch.fx: dense and convolutional layers, activations, average and max pooling,
    layer norm without affine part, sums, means over positions, flattening; modules and parameters
    used twice are tied. Variances are those of the weights the module has now. Widths are taken
    to grow together; kernels are in the NTK parametrisation.

    Raises:
        UnreadableError: naming every part that could not be read.
    """
    x = _input(example)
    try:
        graph = fx.symbolic_trace(model)
    except (TraceError, TypeError, RuntimeError, NameError) as error:
        raise UnreadableError([f"control flow: {error}"]) from error
    reader, values, parts = Reader(), dict[fx.Node, Any](), list[str]()
    for node in graph.graph.nodes:
        try:
            values[node] = _node(node, graph, reader, values, x)
        except KeyError:
            continue  # follows from a part already named
        except (ValueError, TypeError) as error:
            parts.append(f"{node.name} ({node.target}): {error}")
    if parts:
        raise UnreadableError(parts)
    output = values[next(n for n in graph.graph.nodes if n.op == "output")]
    return Program(output.vector)


def _input(example: Tensor) -> Value:
    match example.ndim:
        case 2:
            grid, features = (), example.shape[1]
        case 3:
            grid, features = (example.shape[1],), example.shape[2]
        case 4:
            grid, features = tuple(example.shape[2:]), example.shape[1]
        case _:
            raise ValueError(f"an input has 2, 3 or 4 axes; got {tuple(example.shape)}")
    return Value(Input(features, prod(grid)), grid)


def _node(
    node: fx.Node,
    graph: fx.GraphModule,
    reader: Reader,
    values: dict[fx.Node, Any],
    x: Value,
) -> Any:
    args: Any = fx.map_arg(node.args, lambda n: values[n])
    kwargs: Any = fx.map_arg(node.kwargs, lambda n: values[n])
    match node.op:
        case "placeholder":
            return x
        case "output":
            if not isinstance(args[0], Value):
                raise ValueError("needs one output")
            return args[0]
        case "call_module":
            module = graph.get_submodule(str(node.target))
            return read_module(reader, module, first_input(args, kwargs), str(node.target))
        case "call_function" | "call_method" if node.target in FUNCTIONS:
            return FUNCTIONS[node.target](*args, **kwargs)
        case _:
            raise ValueError(f"no rule for {node.op}")
