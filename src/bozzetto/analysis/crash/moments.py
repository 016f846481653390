"""Bounds on E|h̃ − h| and (E|h̃ − h|²)^½ that pass through a network element by element."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from bozzetto.analysis.crash.activations import Activation
from bozzetto.analysis.crash.rules import Affine, Combine, Concat, Maximum, Mixing
from bozzetto.analysis.crash.walk import Domain

Unit = Literal["neuron", "channel"]


@dataclass(frozen=True)
class Moments:
    """What is known of healthy values h ∈ [low, high] and of the error e = h̃ − h; all (b, *s).

    e = shift + ζ + r with E ζ = 0, E ζ² ≤ variance, (E r²)^½ ≤ rest; `free`: the elements of ζ are
    uncorrelated. Besides, E|e| ≤ mean, (E e²)^½ ≤ cap and (E‖e‖²)^½ ≤ norm (b,).
    """

    low: Tensor
    high: Tensor
    mean: Tensor
    shift: Tensor
    variance: Tensor
    rest: Tensor
    cap: Tensor
    norm: Tensor
    free: bool = False

    @property
    def size(self) -> Tensor:
        """The largest |h|."""
        return torch.maximum(self.low.abs(), self.high.abs())

    @property
    def square(self) -> Tensor:
        """(E e²)^½."""
        return torch.minimum((self.shift**2 + self.variance).sqrt() + self.rest, self.cap)

    def tight(self) -> "Moments":
        """The same knowledge with every bound held against the others."""
        cap = torch.minimum(self.square, _spread(self.norm, self.cap))
        norm = torch.minimum(self.norm, _norms(cap))
        return replace(self, cap=cap, norm=norm, mean=torch.minimum(self.mean, cap))


def _spread(norm: Tensor, like: Tensor) -> Tensor:
    """(b,) shaped to broadcast over (b, *s)."""
    return norm.reshape(-1, *[1] * (like.ndim - 1))


def plain(low: Tensor, high: Tensor, mean: Tensor, square: Tensor) -> Moments:
    """An error known only by its two moments."""
    zero = torch.zeros_like(mean)
    norm = _norms(square)
    return Moments(low, high, mean, zero, zero, square, square, norm).tight()


class MomentDomain(Domain[Moments]):
    """Absolute weights for first moments; squares of weights for what is uncorrelated."""

    def __init__(self, unit: Unit = "neuron", radius: Tensor | float = 0.0) -> None:
        """Take the unit that crashes, and half the width of the box of inputs around x."""
        self.unit, self.radius = unit, radius

    def start(self, x: Tensor) -> Moments:
        """No error."""
        zero = torch.zeros_like(x)
        state = plain(x - self.radius, x + self.radius, zero, zero)
        return replace(state, free=True)

    def affine(self, rule: Affine, state: Moments) -> Moments:
        """E|Ae| ≤ |A| E|e|; uncorrelated parts add in squares; ‖Ae‖ ≤ ‖A‖‖e‖."""
        centre, half = (state.low + state.high) / 2, (state.high - state.low) / 2
        middle, half = rule.run(centre), rule.power(half, 1)
        rest, variance = state.rest, state.variance
        if rule.single or (state.free and rule.squares):
            variance = rule.power(variance, 2)
        else:
            rest, variance = rest + variance.sqrt(), torch.zeros_like(middle)
        norm = state.norm * rule.norm(state.mean[:1])
        cap = rule.power(state.square, 1)
        if rule.squares:
            rows = rule.power(torch.ones_like(state.mean[:1]), 2).sqrt()
            cap = torch.minimum(cap, rows * _spread(state.norm, rows))
        return Moments(
            middle - half,
            middle + half,
            rule.power(state.mean, 1),
            rule.linear(state.shift),
            variance,
            rule.power(rest, 1),
            cap,
            norm,
            free=state.free and rule.single,
        ).tight()

    def activate(self, rule: Activation, state: Moments) -> Moments:
        """|φ(z+e) − φ(z)| ≤ K|e|; far from a kink only E(|e| − d)₊ ≤ E e²/4d bends."""
        low, high = _image(rule, state.low, state.high)
        mean, square = rule.lipschitz * state.mean, rule.lipschitz * state.square
        if rule.kinks is not None:
            mean = torch.minimum(mean, self._bent(rule, state))
        if rule.supremum < torch.inf:
            most = torch.maximum(low.abs(), high.abs()) + rule.supremum
            mean, square = torch.minimum(mean, most), torch.minimum(square, most)
        after = plain(low, high, mean, square)
        return replace(after, norm=torch.minimum(after.norm, rule.lipschitz * state.norm))

    def _bent(self, rule: Activation, state: Moments) -> Tensor:
        """|φ'|·E|e| + bend·E(|e| − d)₊ where a whole interval lies between kinks."""
        assert rule.kinks is not None
        gap = torch.minimum(rule.distance(state.low), rule.distance(state.high))
        for kink in rule.kinks:
            gap = torch.where((state.low <= kink) & (state.high >= kink), 0.0, gap)
        over = torch.minimum(state.mean, state.square**2 / (4 * gap))
        slope = torch.where(gap > 0, rule.slope(state.low).abs(), rule.lipschitz)
        return slope * state.mean + rule.bend * torch.where(gap > 0, over, 0.0)

    def maximum(self, rule: Maximum, state: Moments) -> Moments:
        """|max − max| ≤ the window's largest |e| ≤ its sum; its square likewise."""
        mean, square = (_windows_sum(rule, v) for v in (state.mean, state.square**2))
        return plain(rule.run(state.low), rule.run(state.high), mean, square.sqrt())

    def mixing(self, rule: Mixing, state: Moments) -> Moments:
        """|Δy_i| ≤ own·|e_i| + other·Σ_{j≠i}|e_j|, never above the cap."""

        def through(e: Tensor) -> Tensor:
            rest = e.sum(rule.dim, keepdim=True) - e
            return (rule.own * e + rule.other * rest).clamp(max=rule.cap)

        middle = rule.run((state.low + state.high) / 2)
        half = through((state.high - state.low) / 2)
        return plain(middle - half, middle + half, through(state.mean), through(state.square))

    def combine(self, rule: Combine, states: Sequence[Moments]) -> Moments:
        """Known shifts add with their signs, all else by the triangle inequality."""
        low, high = (
            sum_of(
                s * (a if s > 0 else b) for s, a, b in zip(rule.signs, ends, others, strict=True)
            )
            for ends, others in (
                ([x.low for x in states], [x.high for x in states]),
                ([x.high for x in states], [x.low for x in states]),
            )
        )
        shift = sum_of(s * x.shift for s, x in zip(rule.signs, states, strict=True))
        rest = sum_of(x.rest + x.variance.sqrt() for x in states)
        cap, mean = sum_of(x.square for x in states), sum_of(x.mean for x in states)
        norm = sum_of(x.norm for x in states)
        return Moments(low, high, mean, shift, torch.zeros_like(rest), rest, cap, norm).tight()

    def concat(self, rule: Concat, states: Sequence[Moments]) -> Moments:
        """Side by side; branches may share neurons, so nothing stays uncorrelated."""

        def joined(values: Sequence[Tensor]) -> Tensor:
            return torch.cat(list(values), rule.dim)

        return Moments(
            low=joined([x.low for x in states]),
            high=joined([x.high for x in states]),
            mean=joined([x.mean for x in states]),
            shift=joined([x.shift for x in states]),
            variance=joined([x.variance for x in states]),
            rest=joined([x.rest for x in states]),
            cap=joined([x.cap for x in states]),
            norm=torch.stack([x.norm for x in states]).norm(dim=0),
        )

    def crash(self, state: Moments, rate: float) -> Moments:
        """As e ← m(h + e) − h = (1−p)e − p h + ζ with E ζ = 0, E ζ² = p(1−p) E(h + e)²."""
        p, q, size = rate, 1 - rate, state.size
        before = q * state.square + p * size
        new = p * q * (size + state.square) ** 2
        fixed = bool((state.low == state.high).all())
        shift = q * state.shift - p * state.low if fixed else q * state.shift
        total = _norms(size)
        norm = ((q * state.norm + p * total) ** 2 + p * q * (total + state.norm) ** 2).sqrt()
        return replace(
            state,
            mean=q * state.mean + p * size,
            shift=shift,
            variance=new,
            rest=q * (state.rest + state.variance.sqrt()) + (0.0 if fixed else p * size),
            cap=(before**2 + new).sqrt(),
            norm=norm,
            free=self.unit == "neuron",
        ).tight()


def _norms(v: Tensor) -> Tensor:
    """‖v‖ of every row, (b,)."""
    return v.reshape(len(v), -1).norm(dim=1)


def sum_of(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor of broadcasting shapes."""
    return functools.reduce(torch.add, tensors)


def _windows_sum(rule: Maximum, v: Tensor) -> Tensor:
    return rule.windows(v).nan_to_num(neginf=0.0).sum(1)


def _image(rule: Activation, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """φ of an interval."""
    if rule.monotone:
        return rule.function(low), rule.function(high)
    centre, half = rule.function((low + high) / 2), rule.lipschitz * (high - low) / 2
    return centre - half, centre + half
