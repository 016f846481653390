"""Activations seen from single crashes: how far many crashes together differ from their sum.

Masks add S = Σ b_i c_i to the healthy z, so that φ(z + S) = φ(z) + Σ b_i (φ(z + c_i) − φ(z)) + g,
where g vanishes unless two neurons crash. All bounds are on g, and on what other errors e add to
it: φ(z + S + e) − φ(z + S) − φ'(z)e.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bozzetto.analysis.crash.activations import Activation
from bozzetto.analysis.crash.sums import Sizes, Tail, masks_above, tail
from bozzetto.analysis.crash.symbols import Pair, Rest, either, least, plus


@dataclass(frozen=True)
class Crashes:
    """Σ b_i c_i for independent b_i ~ Bernoulli(p_i): c (units, b, *s) and p, block by block."""

    gains: Sequence[Tensor]
    rates: Sequence[float]
    like: Tensor  # (b, *s)

    def sum(self, function: Callable[[Tensor], Tensor], power: int = 1) -> Tensor:
        """Σ p^power f(c), (b, *s)."""
        found = torch.zeros_like(self.like)
        for gain, rate in zip(self.gains, self.rates, strict=True):
            found = found + rate**power * function(gain).sum(0)
        return found

    def map(self, function: Callable[[Tensor], Tensor]) -> "Crashes":
        """The same with other gains."""
        return replace(self, gains=[function(gain) for gain in self.gains])

    def mean(self) -> Tensor:
        """E S."""
        return self.sum(lambda c: c)

    def variance(self) -> Tensor:
        """E (S − E S)²."""
        return self.sum(torch.square) - self.sum(torch.square, 2)

    def root(self) -> Tensor:
        """(E S²)^½."""
        return (self.variance() + self.mean() ** 2).sqrt()

    def fourth(self) -> Tensor:
        """E (S − E S)⁴."""
        found = 3 * self.variance() ** 2
        for gain, rate in zip(self.gains, self.rates, strict=True):
            spread = rate * (1 - rate)
            found = found + spread * (1 - 6 * spread) * (gain**4).sum(0)
        return found

    def pairs(self) -> Tensor:
        """E Σ_{i<k} b_i b_k c_i c_k for c ≥ 0."""
        return (self.mean() ** 2 - self.sum(torch.square, 2)).clamp(min=0) / 2

    def tail(self) -> Tail | None:
        """The distribution of S from above."""
        rows = self.like.numel()
        gains = [gain.expand(-1, *self.like.shape).reshape(-1, rows) for gain in self.gains]
        if not gains:
            return None
        rates = [g.new_full((len(g),), rate) for g, rate in zip(gains, self.rates, strict=True)]
        return tail(torch.cat(gains), torch.cat(rates))

    def above(self, gap: Tensor) -> Pair:
        """E(S − d)₊ and (E(S − d)₊²)^½ by the distribution, or by the moments about the mean."""
        mean, variance = self.mean(), self.variance()
        near = variance.sqrt()
        sizes = Sizes(variance, self.fourth(), near, *[(near, near)] * 3)
        first, second = masks_above(sizes, (gap - mean).clamp(min=1e-90))
        late = (mean - gap).clamp(min=0)
        found, known = (first + late, second + late), self.tail()
        if known is None:
            return found
        other = known.above(gap.flatten())
        return least(found, (other[0].view_as(gap), other[1].view_as(gap)))

    def chance_above(self, gap: Tensor) -> Tensor:
        """P(S > d): Markov for positive gains, Cantelli, fourth moment, the distribution."""
        room, variance = (gap - self.mean()).clamp(min=1e-90), self.variance()
        found = [
            self.sum(lambda c: c.clamp(min=0)) / gap,
            variance / (variance + room**2),
            self.fourth() / room**4,
        ]
        if (known := self.tail()) is not None:
            found.append(known.chance_above(gap.flatten()).view_as(gap))
        return torch.stack(found).amin(0).nan_to_num(nan=1.0).clamp(max=1)


def beyond(crashes: Crashes, gap: Tensor) -> tuple[Pair, Rest]:
    """(S − d)₊ itself, and what it has beyond Σ b_i (c_i − d)₊, for a kink at d > 0.

    Up: with c' = min(c, d), (S − d)₊ ≤ Σ b(c − d)₊ + (S' − d)₊, and (S' − d)₊ ≤ 2/d Σ_{i<k} of
    b_i b_k c'_i c'_k since S'² − Σc'² ≥ S'(S' − d). Down: what c_k < 0 takes from a single c_i > d.
    """
    alone = crashes.map(lambda c: (c - gap).clamp(min=0))
    under = crashes.map(lambda c: torch.minimum(c, gap))
    pairs = under.map(lambda c: c.clamp(min=0)).pairs()
    up = least((2 * pairs / gap, (2 * pairs).sqrt()), under.above(gap))
    down = _taken(crashes, alone)
    return plus((alone.mean(), alone.root()), up), Rest(up, down, plus(up, down))


def crossing(crashes: Crashes, gap: Tensor, known: Rest, over: Pair) -> Rest:
    """(S + e − d)₊ − (S − d)₊, of e's sign, when (S − d)₊ is at most `over`.

    Where S ≤ d/2 it takes e > d/2 to rise, elsewhere it may be e; it falls by (S − d)₊ at most.
    """
    late = crashes.chance_above(gap / 2).sqrt()
    first, second = known.up
    far = torch.minimum(first, second**2 / (2 * gap)) + torch.minimum(first, second * late)
    up = torch.minimum(first, far), second
    down = least(over, (torch.minimum(known.down[0], known.down[1] * late), known.down[1]))
    return Rest(up, down, plus(up, down))


def _taken(crashes: Crashes, over: Crashes) -> Pair:
    """Σ b_i min((c_i − d)₊, N) for N = Σ_{k≠i} b_k (−c_k)₊, which no b_i of the sum is in."""
    against = crashes.map(lambda c: (-c).clamp(min=0))
    mean, root = against.mean(), against.root()
    first = over.sum(lambda o: torch.minimum(o, mean))
    each = torch.zeros_like(mean)
    for gain, rate in zip(over.gains, over.rates, strict=True):
        each = each + rate**0.5 * torch.minimum(gain, root).sum(0)
    return first, torch.minimum(over.root(), each)


def _curved(crashes: Crashes, curvature: float) -> Rest:
    """|g| ≤ C Σ_{i<k} b_i b_k |c_i c_k|."""
    size = crashes.map(torch.abs)
    mean, squares = size.mean(), size.sum(torch.square)
    fourth = mean**4 / 4 + squares * mean**2 + squares**2 / 2  # ≥ E (Σ_{i<k} b_i b_k |c_i c_k|)²
    return either((curvature * size.pairs(), curvature * fourth.sqrt()))


def _curved_errors(crashes: Crashes, rule: Activation, curvature: float, known: Rest) -> Rest:
    """|φ(z + S + e) − φ(z + S) − φ'(z)e| ≤ C|e|(|S| + |e|/2), and ≤ 2K|e|."""
    spread = crashes.root()
    first, second = known.both
    near = curvature * second * (spread + second / 2)
    slope = 2 * rule.lipschitz
    return either((torch.minimum(slope * first, near), slope * second))


def remainders(
    rule: Activation, crashes: Crashes, anchor: Tensor, known: Rest
) -> tuple[Rest, Rest] | None:
    """What an activation leaves of crashes S alone, and of errors e; None if nothing is known.

    Args:
        rule: the activation φ.
        crashes: S.
        anchor: the value z without crashes and errors, (b, *s).
        known: bounds on e.
    """
    if rule.kinks is not None:
        found = [_at_kink(rule, crashes, anchor - kink, known) for kink in rule.kinks]
        masks, errors = (functools.reduce(Rest.joined, kind) for kind in zip(*found, strict=True))
        return masks, errors
    if rule.curvature is None:
        return None
    curvature = rule.curvature
    return _curved(crashes, curvature), _curved_errors(crashes, rule, curvature, known)


def _at_kink(rule: Activation, crashes: Crashes, away: Tensor, known: Rest) -> tuple[Rest, Rest]:
    """(x)₊ is (−x)₊ + x, so that a kink may be crossed from above as well."""
    above, gap = away > 0, away.abs().clamp(min=1e-90)

    def chosen(a: Pair, b: Pair) -> Pair:
        return torch.where(above, a[0], b[0]), torch.where(above, a[1], b[1])

    def bent(rest: Rest) -> Rest:
        rest = rest.map(lambda v: rule.bend * v)
        return rest if rule.convex else either(rest.both)

    turned = Rest(chosen(known.down, known.up), chosen(known.up, known.down), known.both)
    inward = crashes.map(lambda c: torch.where(above, -c, c))
    over, masks = beyond(inward, gap)
    return bent(masks), bent(crossing(inward, gap, turned, over))
