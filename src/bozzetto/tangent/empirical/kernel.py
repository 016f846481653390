"""The tangent kernel of a finite torch network, exactly, by several routes that agree."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from bozzetto.tangent.empirical.network import (
    ALL,
    Linearised,
    Network,
    Parameters,
    jacobian,
    network,
)
from bozzetto.tangent.empirical.structured import Factors, factors, stacked
from bozzetto.tangent.pairs import by_blocks

Outputs: TypeAlias = Literal["each", "mean"]
Route: TypeAlias = Literal["structured", "jacobian", "products"]


def empirical_ntk(
    model: nn.Module,
    x: Tensor,
    x2: Tensor | None = None,
    *,
    outputs: Outputs = "mean",
    route: Route = "structured",
    block: int = 64,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """J(x) J(x2)ᵀ over the parameters that require gradients.

    `outputs` "each" gives (N, N', O, O), "mean" (N, N'), the average of the O kernels of an output
    with itself. The model is used in the mode it is in and left as it was; with batch norm in
    training mode x is one batch and x2 another.

    `route`: "structured" multiplies layers' inputs and output gradients, in the cheaper order, and
    takes the Jacobian of what is not a known layer; "jacobian" forms all of it; "products" takes
    one Jacobian-vector product an output of x2, in the memory of a few gradients. Novak et al.,
    *Fast Finite Width Neural Tangent Kernel* (arXiv 2206.08720) compares them.

    Memory holds the gradients of two blocks of inputs, all outputs: 2 × block × O × parameters
    numbers at most. For the mean of more inputs than a block, the structured route takes one output
    after the other and blocks O times as large, so that blocks are formed anew less often.

    Raises:
        ValueError: for outputs or a route that do not exist, and for batch norm in training mode
            by the structured route, which takes inputs apart.
    """
    for name, value, known in (("outputs", outputs, Outputs), ("route", route, Route)):
        if value not in get_args(known):
            raise ValueError(f"{name} is one of {get_args(known)}; got {value!r}")
    net = network(model)
    if net.coupled and route == "structured":
        raise ValueError(
            "batch norm in training mode couples the inputs of a batch: take route='jacobian' or "
            "'products', or model.eval()"
        )
    if route == "products":
        return _by_products(net, x, x if x2 is None else x2, outputs)
    if net.coupled:
        return _pair_of_jacobians(net, x, x2, outputs)
    if route == "jacobian":

        def meet(a: Parameters, b: Parameters) -> Tensor:
            return contracted(a, b, outputs)

        return by_blocks(meet, x, x2, block, progress, prepare=partial(jacobian, net))
    if outputs == "mean" and len(x) > block:
        return _output_by_output(net, x, x2, block, progress)
    return _structured(net, outputs, x, x2, block, progress)


def _structured(
    net: Network,
    outputs: Outputs,
    x: Tensor,
    x2: Tensor | None,
    block: int,
    progress: Callable[[float], None] | None,
    only: slice = ALL,
    gathered: int = 1,
) -> Tensor:
    """From factors of `block` inputs at a time, so many of which are gathered to meet others."""

    def prepare(x: Tensor) -> Factors:
        return stacked([factors(net, part, outputs, only) for part in x.split(block)])

    def meet(a: Factors, b: Factors) -> Tensor:
        return a.kernel(b, outputs)

    return by_blocks(meet, x, x2, block * gathered, progress, prepare=prepare)


def _output_by_output(
    net: Network,
    x: Tensor,
    x2: Tensor | None,
    block: int,
    progress: Callable[[float], None] | None,
) -> Tensor:
    """The mean over outputs of one output's kernel, in blocks O times as large."""
    with torch.no_grad():
        count = net(net.parameters, x[:1]).shape[1]
    total = x.new_zeros(())
    for o in range(count):

        def report(done: float, o: int = o) -> None:
            if progress is not None:
                progress((o + done) / count)

        one = slice(o, o + 1)
        total = total + _structured(net, "mean", x, x2, block, report, one, gathered=count)
    return total / count


def contracted(a: Parameters, b: Parameters, outputs: Outputs) -> Tensor:
    """Σ over parameters of J J'ᵀ."""
    rule = "nop,muq->nmou" if outputs == "each" else "nop,moq->nm"
    rule = rule.replace("q", "p")
    total = sum(torch.einsum(rule, a[k], b[k]) for k in a)
    assert isinstance(total, Tensor)
    return total if outputs == "each" else total / next(iter(a.values())).shape[1]


def _pair_of_jacobians(net: Network, x: Tensor, x2: Tensor | None, outputs: Outputs) -> Tensor:
    first = jacobian(net, x)
    return contracted(first, first if x2 is None else jacobian(net, x2), outputs)


def _by_products(net: Network, x: Tensor, x2: Tensor, outputs: Outputs) -> Tensor:
    """Columns of J(x) J(x2)ᵀ: a gradient of one output at x2, then its forward derivative at x."""
    left, right = Linearised(net, x), Linearised(net, x2)
    columns = []
    for index in range(right.shape.numel()):
        unit = x2.new_zeros(right.shape.numel(), dtype=torch.get_default_dtype())
        unit[index] = 1.0
        columns.append(left.times(right.transpose(unit.view(right.shape))))
    kernel = torch.stack(columns, -1).unflatten(-1, right.shape)  # (N, O, N', O)
    if outputs == "each":
        return kernel.transpose(1, 2)
    return kernel.diagonal(dim1=1, dim2=3).mean(-1)
