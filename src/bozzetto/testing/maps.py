"""The contract of a linear map: what `linear_map` says of a layer is what the layer does."""

import copy
from functools import singledispatch

import torch
from torch import Tensor, nn

from bozzetto.maps import LinearMap, linear_map
from bozzetto.ops import Conv, Dense, Lookup, Op
from bozzetto.testing.requiring import normal, require, same


def check_map(layer: nn.Module, x: Tensor | None = None) -> None:
    """The contract of `linear_map` for a layer.

    Checked in float64: the map's own module gives what the layer gives; the matrix applied to the
    patches of the input gives it too, with the bias; layers and pointwise layers of other widths
    can be built for the map, there and on the meta device; none of this changes the layer.

    Args:
        layer: any that `linear_map` takes.
        x: an input for it; drawn for the maps that the library knows.

    Raises:
        AssertionError: naming the first clause that is broken.
    """
    exact = copy.deepcopy(layer).double()
    before = {name: value.clone() for name, value in exact.state_dict().items()}
    m = linear_map(exact)
    x = draw_input(m) if x is None else x
    x = x.double() if x.is_floating_point() else x
    y = exact(x)
    same(m.module()(x), y, "the map's module must give what the layer gives", 1e-10)
    if not isinstance(m.op, Lookup):
        _check_patches(m, x, y)
    _check_parts(m, x, y)
    for name, value in exact.state_dict().items():
        same(value, before[name], f"the layer's {name} must not be changed")


def _check_patches(m: LinearMap, x: Tensor, y: Tensor) -> None:
    """The matrix times the patches, plus the bias, is the output."""
    g, (rows, d) = m.op.groups, m.block
    require(m.matrix().shape == (g, rows, d), f"the matrix has shape {tuple(m.matrix().shape)}")
    patches = m.op.patches(x)  # (g, positions, d)
    require(patches.shape[::2] == (g, d), f"patches have shape {tuple(patches.shape)}")
    bias = 0.0 if m.bias is None else m.bias.detach().reshape(g, 1, rows)
    want = y.unsqueeze(0) if y.ndim == -m.op.dim else y
    want = want.movedim(m.op.dim, 0).reshape(g, rows, -1).mT
    same(patches @ m.matrix().mT + bias, want, "matrix times patches must be the output", 1e-10)


def _check_parts(m: LinearMap, x: Tensor, y: Tensor) -> None:
    """A narrower layer and a pointwise one behind it give the output's shape."""
    for device in (m.weight.device, torch.device("meta")):
        like = m.weight.to(device)
        width = 2 * m.op.groups
        first = m.op.layer(m.inputs, width, bias=False, like=like)
        second = m.op.pointwise(width, m.outputs, bias=True, like=like)
        got = second(first(x.to(device)))
        require(got.shape == y.shape, f"two parts give {tuple(got.shape)} for {tuple(y.shape)}")
        require(got.device == device, f"parts like a weight on {device} are on {got.device}")


def draw_input(m: LinearMap) -> Tensor:
    """A small float64 input (indices for a look-up) for a map of a known kind."""
    return _input(m.op, m.inputs)


@singledispatch
def _input(op: Op, n: int) -> Tensor:
    raise ValueError(f"an input is needed for {type(op).__name__}")


@_input.register
def _(op: Dense, n: int) -> Tensor:
    return normal(3, 4, n)


@_input.register
def _(op: Lookup, n: int) -> Tensor:
    return torch.arange(2 * n).remainder(n).view(2, n)


@_input.register
def _(op: Conv, n: int) -> Tensor:
    spans = [d * (k - 1) + 1 for d, k in zip(op.dilation, op.taps, strict=True)]
    return normal(3, n, *(span + 2 * step for span, step in zip(spans, op.stride, strict=True)))


__all__ = ["check_map", "draw_input"]
