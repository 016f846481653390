"""Fast kernels of plain chains: dense or convolutional layers with one activation between them.

The forward recursion Θ ← σ² V'·Θ + C (*Tensor Programs II*, arXiv 2006.14548, section 6) on blocks
of pairs. A flattening readout needs pixels paired with themselves only; a mean over pixels needs
all pairs of pixels, on which a convolution acts one axis at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bozzetto.tangent.activation import Activation
from bozzetto.tangent.images import Window
from bozzetto.tangent.pairs import by_blocks
from bozzetto.tangent.program import Respect, unit


class Kernels(NamedTuple):
    """The covariance of the output and the tangent kernel, each (N, N')."""

    nngp: Tensor
    ntk: Tensor


@dataclass(frozen=True)
class Layer:
    """φ(W x + b): entries of W of variance `variance`/fan-in, of b of variance `bias` (None: no b).

    With a `window` it is a convolution, fan-in counting its offsets.
    """

    activation: Activation
    variance: float = 1.0
    bias: float | None = None
    window: Window | None = None


@dataclass
class _State:
    """Kernels of a layer's vectors; p and q are the variances at x and at x2."""

    c: Tensor
    theta: Tensor
    p: Tensor
    q: Tensor


Average = Callable[[Tensor], Tensor]


def _affine(
    state: _State, layer: Layer, respect_to: Respect, pair: Average, one: Average
) -> _State:
    """Through W x + b; `pair` and `one` average over offsets the kernels and the variances."""
    c = pair(state.c)
    theta = pair(state.theta).mul_(layer.variance)
    theta.add_(c, alpha=layer.variance if unit(respect_to) else 1.0)
    c, shift = c * layer.variance, layer.bias or 0.0
    if layer.bias is not None:
        theta.add_(shift if unit(respect_to) else 1.0)
    p, q = one(state.p) * layer.variance + shift, one(state.q) * layer.variance + shift
    return _State(c.add_(shift), theta, p, q)


def _activate(state: _State, activation: Activation, left: tuple, right: tuple) -> _State:
    p, q = state.p[left], state.q[right]
    c, slope = activation.both(p, q, state.c)
    p, q = (activation.moment(v, v, v) for v in (state.p, state.q))
    return _State(c, slope.mul_(state.theta), p, q)


def dense_kernels(
    x: Tensor,
    layers: Sequence[Layer],
    x2: Tensor | None = None,
    *,
    readout: float = 1.0,
    respect_to: Respect = "unit",
    block: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Kernels:
    """Kernels of x (N, d) -> layers -> v·h with v of variance `readout`/n.

    Works in the type of x: float64 keeps the diagonal exact, float32 is faster and loses about
    3e-4 of the tangent kernel where two inputs nearly agree.
    """

    def pair(a: Tensor, b: Tensor) -> Tensor:
        c = a @ b.T / a.shape[1]
        p, q = a.square().mean(1), b.square().mean(1)
        state = _State(c, torch.zeros_like(c), p, q)
        for layer in layers:
            state = _affine(state, layer, respect_to, torch.clone, torch.clone)
            state = _activate(state, layer.activation, (..., None), (None, ...))
        return _readout(state.c, state.theta, readout, respect_to)

    _check(x, x2, 2)
    return _split(by_blocks(pair, x, x2, block or block_size(1), progress))


def convolutional_kernels(
    x: Tensor,
    layers: Sequence[Layer],
    x2: Tensor | None = None,
    *,
    pool: Literal["flatten", "mean"] = "mean",
    readout: float = 1.0,
    respect_to: Respect = "unit",
    block: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Kernels:
    """Kernels of images x (N, C, H, W) -> convolutions -> readout of all pixels or of their mean.

    Memory is about 60 bytes × block² × (H W)² for "mean" and × H W for "flatten"; the default block
    keeps a working set of a few MiB, which is also the fastest.
    """

    def pair(a: Tensor, b: Tensor) -> Tensor:
        state = _pixels(a, b, every=pool == "mean")
        for layer in layers:
            state = _convolve(state, _window(layer), layer, respect_to)
            state = _activate(state, layer.activation, *_sides(every=pool == "mean"))
        c, theta = (t.flatten(2).mean(2) for t in (state.c, state.theta))
        return _readout(c, theta, readout, respect_to)

    _check(x, x2, 4)
    if pool not in ("flatten", "mean"):
        raise ValueError(f"pool is 'flatten' or 'mean'; got {pool!r}")
    pixels = x.shape[2] * x.shape[3]
    size = block or block_size(pixels**2 if pool == "mean" else pixels)
    return _split(by_blocks(pair, x, x2, size, progress))


def _sides(*, every: bool) -> tuple[tuple, tuple]:
    """How variances (N, H, W) at x and at x2 broadcast to the kernel of pixels."""
    if not every:
        return (slice(None), None), (None, slice(None))
    one, new = slice(None), None
    return (one, new, one, new, one, new), (new, one, new, one, new, one)


def _window(layer: Layer) -> Window:
    if layer.window is None:
        raise ValueError("a layer of a convolutional chain needs a window")
    return layer.window


def block_size(entries: int) -> int:
    """Inputs a block, for kernels with that many entries a pair of inputs: what a cache holds."""
    return max(1, math.isqrt(2**17 // entries))


def _pixels(a: Tensor, b: Tensor, *, every: bool) -> _State:
    """Kernels of the images themselves: c (N, N', H, W), or (N, N', H, H', W, W') of every pair."""
    c = torch.einsum("nchw,mcij->nmhiwj" if every else "nchw,mchw->nmhw", a, b) / a.shape[1]
    return _State(c, torch.zeros_like(c), a.square().mean(1), b.square().mean(1))


def _convolve(state: _State, window: Window, layer: Layer, respect_to: Respect) -> _State:
    def one(v: Tensor) -> Tensor:
        return shifted(shifted(v, window, 0, (-2,)), window, 1, (-1,)) / window.size

    def every(v: Tensor) -> Tensor:
        return shifted(shifted(v, window, 0, (2, 3)), window, 1, (4, 5)).div_(window.size)

    return _affine(state, layer, respect_to, every if state.c.ndim == 6 else one, one)


def shifted(v: Tensor, window: Window, which: int, dims: tuple[int, ...]) -> Tensor:
    """Σ_k of v with all `dims` (image axis `which`, of one or both inputs) moved by offset k."""
    out = window.places(v.shape[dims[0]], which)
    stride, dilation = window.stride[which], window.dilation[which]
    reach = (out - 1) * stride + dilation * (window.kernel[which] - 1) + 1
    for dim in dims:
        v = _around(v, dim, window.before[which], reach, circular=window.padding == "circular")
    moved = []
    for k in range(window.kernel[which]):
        part = v
        for dim in dims:
            start = k * dilation
            part = part.movedim(dim, 0)[start : start + (out - 1) * stride + 1 : stride]
            part = part.movedim(0, dim)
        moved.append(part)
    return sum(moved[1:], moved[0].clone())


def _around(v: Tensor, dim: int, before: int, reach: int, *, circular: bool) -> Tensor:
    """The `reach` entries from −before on along dim: zeros outside, or the other end."""
    if circular:
        return v.index_select(dim, torch.arange(-before, reach - before) % v.shape[dim])
    pads = [0, 0] * v.ndim
    place = 2 * (v.ndim - 1 - dim % v.ndim)
    pads[place : place + 2] = [before, max(0, reach - before - v.shape[dim])]
    return F.pad(v, pads)


def _readout(c: Tensor, theta: Tensor, variance: float, respect_to: Respect) -> Tensor:
    """Both kernels after v·h, stacked on a last axis."""
    rate = variance if unit(respect_to) else 1.0
    return torch.stack([c * variance, theta * variance + c * rate], -1)


def _split(both: Tensor) -> Kernels:
    return Kernels(both[..., 0], both[..., 1])


def _check(x: Tensor, x2: Tensor | None, ndim: int) -> None:
    if x.ndim != ndim or (x2 is not None and x2.shape[1:] != x.shape[1:]):
        raise ValueError(
            f"inputs need {ndim} axes and equal features; got {tuple(x.shape)}"
            + ("" if x2 is None else f" and {tuple(x2.shape)}")
        )
