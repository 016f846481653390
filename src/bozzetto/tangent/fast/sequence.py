"""Fast kernels of sequence networks: the simple RNN and the transformer with tied attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bozzetto.tangent.activation import Activation, relu
from bozzetto.tangent.blocks import softmax
from bozzetto.tangent.fast.chain import Kernels, block_size
from bozzetto.tangent.pairs import by_blocks
from bozzetto.tangent.program import Respect, unit


@dataclass(frozen=True)
class Recurrence:
    """s_t = φ(W s_{t−1} + U x_t + b), s₀ = 0, read out from the mean or the last state.

    `bias` None means that there is none.
    """

    activation: Activation
    variance: float = 1.0
    input_variance: float = 1.0
    bias: float | None = None
    readout: float = 1.0
    pool: Literal["mean", "last"] = "mean"

    def __post_init__(self) -> None:
        if self.pool not in ("mean", "last"):
            raise ValueError(f"pool is 'mean' or 'last'; got {self.pool!r}")

    def rates(self, respect_to: Respect) -> tuple[float, float, float, float]:
        """What the tangent kernel multiplies the parts of W, U, b and the readout by."""
        if unit(respect_to):
            return self.variance, self.input_variance, self.bias or 0.0, self.readout
        return 1.0, 1.0, 0.0 if self.bias is None else 1.0, 1.0


def recurrent_kernels(
    x: Tensor,
    network: Recurrence,
    x2: Tensor | None = None,
    *,
    respect_to: Respect = "unit",
    block: int | None = None,
) -> Kernels:
    """Kernels between sequences x (N, T, d) and x2 (N', T', d).

    *Tensor Programs II* (arXiv 2006.14548, appendix E.2, with the σ_W² that its text omits).
    """

    def pair(a: Tensor, b: Tensor) -> Tensor:
        forward = _run(network, a, b)
        state = _pooled(network, forward.states)
        rw, ru, rb, rv = network.rates(respect_to)
        inner = rw * forward.before + ru * forward.gram + rb
        tangent = (_gradients(network, forward.slopes) * inner).sum((0, 3)) + rv * state
        return torch.stack([network.readout * state, tangent], -1)

    _check(x, x2)
    size = block or block_size(x.shape[1] ** 2)
    both = by_blocks(pair, x, x2, size)
    return Kernels(both[..., 0], both[..., 1])


@dataclass(frozen=True)
class _Forward:
    """Over all pairs of steps, (T, N, N', T'): inputs, states, the states before, slopes."""

    gram: Tensor
    states: Tensor
    before: Tensor
    slopes: Tensor


def _run(network: Recurrence, a: Tensor, b: Tensor) -> _Forward:
    p, q = _variances(network, a), _variances(network, b)
    gram = torch.einsum("ntd,mrd->tnmr", a, b) / a.shape[2]
    state = torch.zeros_like(gram[0])
    states, before, slopes = [], [], []
    for t in range(len(gram)):
        earlier = torch.cat([torch.zeros_like(state[..., :1]), state[..., :-1]], -1)
        h = network.variance * earlier + network.input_variance * gram[t] + (network.bias or 0.0)
        state, slope = network.activation.both(p[:, t, None, None], q[None], h)
        states.append(state)
        before.append(earlier)
        slopes.append(slope)
    return _Forward(gram, torch.stack(states), torch.stack(before), torch.stack(slopes))


def _variances(network: Recurrence, x: Tensor) -> Tensor:
    """The variance of the preactivation at every step: (N, T)."""
    square = x.square().mean(2) * network.input_variance + (network.bias or 0.0)
    state, found = torch.zeros_like(square[:, 0]), []
    for t in range(x.shape[1]):
        p = network.variance * state + square[:, t]
        state = network.activation.moment(p, p, p)
        found.append(p)
    return torch.stack(found, 1)


def _pooled(network: Recurrence, states: Tensor) -> Tensor:
    return states.mean((0, 3)) if network.pool == "mean" else states[-1, ..., -1]


def _gradients(network: Recurrence, slopes: Tensor) -> Tensor:
    """E of gradients at the preactivations of every pair of steps: (T, N, N', T')."""
    steps, others = len(slopes), slopes.shape[-1]
    gradient, found = torch.zeros_like(slopes[0]), []
    for t in reversed(range(steps)):
        later = torch.cat([gradient[..., 1:], torch.zeros_like(gradient[..., :1])], -1)
        state = network.variance * later
        if network.pool == "mean":
            state += network.readout / (steps * others)
        elif t == steps - 1:
            state[..., -1] += network.readout
        gradient = slopes[t] * state
        found.append(gradient)
    return torch.stack(found[::-1])


@dataclass(frozen=True)
class Transformer:
    """`blocks.transformer_block`s with tied attention, read out from the mean of the tokens.

    `key_variance` and `variance` are those of U and of the two feed-forward matrices; no biases.
    """

    depth: int
    key_variance: float = 1.0
    variance: float = 1.0
    readout: float = 1.0
    activation: Activation = relu
    weights: Callable[[Tensor], Tensor] = softmax


@dataclass(frozen=True)
class _Block:
    """One block's Gram matrices over pairs of tokens, and what its backward pass needs."""

    x: Tensor
    z: Tensor
    h: Tensor
    slope: Tensor
    mixing: tuple[Tensor, Tensor]
    norms: tuple[Tensor, Tensor]


def transformer_kernels(
    x: Tensor,
    network: Transformer,
    x2: Tensor | None = None,
    *,
    respect_to: Respect = "unit",
    block: int | None = None,
) -> Kernels:
    """Kernels between token sequences x (N, T, d) and x2 (N', T', d) (ibid., appendix E.3).

    Attention weights and norms are those of their limits; gradients through them vanish.
    """

    def pair(a: Tensor, b: Tensor) -> Tensor:
        out, blocks = _attend(network, a[:, None], b[None])
        return _transformer_pair(network, out, blocks, respect_to)

    _check(x, x2)
    both = by_blocks(pair, x, x2, block or block_size(x.shape[1] ** 2))
    return Kernels(both[..., 0], both[..., 1])


def _check(x: Tensor, x2: Tensor | None) -> None:
    if x.ndim != 3 or (x2 is not None and (x2.ndim != 3 or x2.shape[2] != x.shape[2])):
        raise ValueError(
            f"sequences are (N, T, d) with equal features; got {tuple(x.shape)}"
            + ("" if x2 is None else f" and {tuple(x2.shape)}")
        )


def _gram(a: Tensor, b: Tensor) -> Tensor:
    return a @ b.mT / a.shape[-1]


def _attend(network: Transformer, a: Tensor, b: Tensor) -> tuple[Tensor, list[_Block]]:
    """Forward through all blocks at once for each input with itself and for the pairs."""
    left, right, cross = _gram(a, a), _gram(b, b), _gram(a, b)
    blocks = []
    for _ in range(network.depth):
        mixing = (_mixing(network, left), _mixing(network, right))
        x = cross
        k = [network.key_variance * c for c in (left, right, cross)]
        y = [
            mixing[0] @ k[0] @ mixing[0].mT,
            mixing[1] @ k[1] @ mixing[1].mT,
            mixing[0] @ k[2] @ mixing[1].mT,
        ]
        (left, right, z), first = _normalised(*y)
        (g, gr, gc) = (network.variance * c for c in (left, right, z))
        p, q = (c.diagonal(dim1=-2, dim2=-1) for c in (g, gr))
        h, slope = network.activation.both(p[..., :, None], q[..., None, :], gc)
        left = network.variance * network.activation.moment(p[..., :, None], p[..., None, :], g)
        left = left + g / network.variance
        right = network.variance * network.activation.moment(q[..., :, None], q[..., None, :], gr)
        right = right + gr / network.variance
        (left, right, cross), second = _normalised(left, right, network.variance * h + z)
        blocks.append(_Block(x, z, h, slope, mixing, (first, second)))
    return cross, blocks


def _mixing(network: Transformer, own: Tensor) -> Tensor:
    """A + I, with the attention that a sequence pays itself in the limit."""
    weights = network.weights(network.key_variance * own)
    return weights + torch.eye(own.shape[-1], dtype=own.dtype)


def _normalised(
    left: Tensor, right: Tensor, cross: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Layer norm of all three Gram matrices, and the factor on the pairs."""
    a, b = (c.diagonal(dim1=-2, dim2=-1).rsqrt() for c in (left, right))
    factor = a[..., :, None] * b[..., None, :]
    return (
        left * a[..., :, None] * a[..., None, :],
        right * b[..., :, None] * b[..., None, :],
        cross * factor,
    ), factor


def _transformer_pair(
    network: Transformer, out: Tensor, blocks: list[_Block], respect_to: Respect
) -> Tensor:
    """Backward, and both kernels on a last axis."""
    su, sw, sv = network.key_variance, network.variance, network.readout
    ru, rw, rv = (su, sw, sv) if unit(respect_to) else (1.0, 1.0, 1.0)
    mean = out.mean((-2, -1))
    tangent = rv * mean
    gradient = torch.full_like(out, sv / (out.shape[-2] * out.shape[-1]))
    for b in reversed(blocks):
        dh = gradient * b.norms[1]
        dg = sw * dh * b.slope
        dk = b.mixing[0].mT @ ((sw * dg + dh) * b.norms[0]) @ b.mixing[1]
        parts = rw * (dh * b.h + dg * b.z) + ru * dk * b.x
        tangent = tangent + parts.sum((-2, -1))
        gradient = su * dk
    return torch.stack([sv * mean, tangent], -1)
