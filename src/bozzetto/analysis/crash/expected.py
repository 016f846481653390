"""Zonotopes whose symbols are random: bounds on E|·| and (E ·²)^½ when neurons crash by chance.

Mask symbols are independent and exactly known; drift symbols are uncorrelated (a martingale
difference each); of rest symbols only the sizes are known.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bozzetto.analysis.crash.activations import Activation
from bozzetto.analysis.crash.responses import Crashes, beyond, crossing, remainders
from bozzetto.analysis.crash.sums import Sizes, curved, mean_absolute, stop_loss
from bozzetto.analysis.crash.symbols import (
    Fresh,
    Pair,
    Rest,
    Zonotope,
    either,
    fresh_rest,
    grouped,
    least,
    none,
    total,
    wide,
)
from bozzetto.analysis.crash.zonotope import ZonotopeDomain, largest


class ExpectedZonotope(ZonotopeDomain):
    """Independent crashes with a probability per layer."""

    def crash(self, state: Zonotope, rate: float) -> Zonotope:
        """As e ← (1−p)e − p h + (p−b)(h + shift) + (p−b)(e − shift): mask and drift symbols."""
        p, q = rate, 1 - rate
        first, second = self.size(state)
        spread = (p * q) ** 0.5
        rest = none(first) if state.fresh is None else state.fresh.rest.map(lambda v: q * v)
        drift = 2 * p * q * first, spread * second
        fresh = Fresh(p, -(state.value + state.shift), drift, rest)
        shift = q * state.shift - p * state.value
        return replace(state.scaled(q), shift=shift, fresh=fresh)

    def through(self, rule: Activation, state: Zonotope) -> Zonotope:
        """Elementwise, the tangent or the responses to single crashes, whichever leaves less."""
        tangent = super().through(rule, state)
        other = self._responses(rule, state)
        assert tangent.fresh is not None
        if other is None or other.fresh is None:
            return tangent
        better = other.fresh.rest.both[0] < tangent.fresh.rest.both[0]

        def chosen(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(better, a, b)

        masks = {k: chosen(v, tangent.masks[k]) for k, v in other.masks.items()}
        parts = {k: chosen(v, tangent.parts[k]) for k, v in other.parts.items()}
        rest = other.fresh.rest.where(better, tangent.fresh.rest)
        shift = chosen(other.shift, tangent.shift)
        return Zonotope(tangent.value, shift, masks, parts, fresh_rest(rest))

    def _responses(self, rule: Activation, state: Zonotope) -> Zonotope | None:
        """A mask's coefficient becomes what the activation makes of its crash alone."""
        crashes = self._crashes(state)
        anchor = state.value + state.shift - crashes.mean()
        known = self.errors(state)
        found = remainders(rule, crashes, anchor, known)
        if found is None:
            return None
        slope, still = rule.slope(anchor), rule.function(anchor)
        plain = (known if rule.monotone else either(known.both)).map(lambda v: rule.lipschitz * v)
        straight = (2 * found[1].both[0] <= plain.both[0]) | (slope == 0)
        slope = torch.where(straight, slope, 0.0)
        rest = found[0].joined(found[1].where(straight, plain))
        if state.fresh is not None:
            rest = rest.joined(state.fresh.rest.map(lambda v: slope * v))
        masks = {k: rule.function(anchor + v) - still for k, v in state.masks.items()}
        parts = {k: slope * v for k, v in state.parts.items()}
        value = rule.function(state.value)
        after = Zonotope(value, still - value, masks, parts, fresh_rest(rest))
        return replace(after, shift=after.shift + self._crashes(after).mean())

    def overtaken(self, best: Zonotope, other: Zonotope) -> Rest:
        """The errors' difference where the other is ahead, or they make it so."""
        apart = total((1.0, -1.0), (other, best))
        crashes = self._crashes(apart)
        lead = -(apart.value + apart.shift - crashes.mean())
        gap = lead.clamp(min=1e-90)
        over, _ = beyond(crashes, gap)
        late = (-lead).clamp(min=0)
        return crossing(crashes, gap, self.errors(apart), (over[0] + late, over[1] + late))

    def any_of(self, entries: Sequence[Zonotope]) -> Rest:
        """Each entry's drift, whose symbols add in squares; rest symbols as the largest."""
        zero = torch.zeros_like(entries[0].value)
        rests = [zero] * 6
        for extreme in largest(entries):
            for k, part in extreme.parts.items():
                more = _rest_sizes(self.blocks[k].rest, part)
                rests = [r + m for r, m in zip(rests, more, strict=True)]
        found = Rest((rests[0], rests[1]), (rests[2], rests[3]), (rests[4], rests[5]))
        for entry in entries:
            first, second = self._drift(entry)
            half = first / 2, second
            found = found.joined(Rest(half, half, (first, second)))
        return found

    def _drift(self, state: Zonotope) -> Pair:
        """E|·| and (E ·²)^½ of all drift symbols: (b, *s)."""
        first, square = torch.zeros_like(state.value), torch.zeros_like(state.value)
        for k, part in state.parts.items():
            size, drift = part.abs(), self.blocks[k].drift
            first = first + (size * wide(drift[0], part)).sum(0)
            square = square + (
                grouped(size * wide(drift[1], part), self.blocks[k].groups).square().sum(0)
            )
        second = square.sqrt()
        return torch.minimum(first, second), second

    def errors(self, state: Zonotope) -> Rest:
        """Drift and rest."""
        s = self.sizes(state)
        return Rest(s.up, s.down, s.rest)

    def _crashes(self, state: Zonotope) -> Crashes:
        rates = [self.blocks[k].rate for k in state.masks]
        return Crashes(list(state.masks.values()), rates, state.value)

    def sizes(self, state: Zonotope) -> Sizes:
        """The error's moments from its symbols (fresh ones must be rests only)."""
        crashes = self._crashes(state)
        variance = crashes.variance()
        first = crashes.map(torch.abs)
        first = 2 * (first.mean() - first.sum(lambda c: c, 2))
        rest = [torch.zeros_like(state.value)] * 6
        for k, part in state.parts.items():
            more = _rest_sizes(self.blocks[k].rest, part)
            rest = [r + m for r, m in zip(rest, more, strict=True)]
        if state.fresh is not None:
            assert state.fresh.rate == 0
            fresh = [v for pair in state.fresh.rest.pairs() for v in pair]
            rest = [r + f for r, f in zip(rest, fresh, strict=True)]
        drift_first, drift = self._drift(state)
        return Sizes(
            variance,
            crashes.fourth(),
            torch.minimum(first, variance.sqrt()),
            (drift_first / 2 + rest[0], drift + rest[1]),
            (drift_first / 2 + rest[2], drift + rest[3]),
            (drift_first + rest[4], drift + rest[5]),
        )

    def size(self, state: Zonotope) -> Pair:
        """E|e − shift| and its root mean square."""
        s = self.sizes(state)
        return s.first + s.rest[0], s.deviation + s.rest[1]

    def total(self, state: Zonotope) -> Pair:
        """E|e| and (E e²)^½ of the whole error, (b, *s)."""
        state = self.settled(state)
        s = self.sizes(state)
        spread = (state.shift**2 + s.variance).sqrt()
        first = torch.minimum(spread, self._masks_exactly(state))
        return first + s.rest[0], spread + s.rest[1]

    def _masks_exactly(self, state: Zonotope) -> Tensor:
        """E|shift + X| from the distribution of X, (b, *s)."""
        if not state.masks:
            return state.shift.abs()
        rows = state.value.numel()
        gains = torch.cat([v.reshape(-1, rows) for v in state.masks.values()])
        rate = torch.cat(
            [gains.new_full((len(v),), self.blocks[k].rate) for k, v in state.masks.items()]
        )
        start = state.shift.flatten() - rate @ gains
        return mean_absolute(start, gains, rate).reshape(state.value.shape)

    def bent(self, rule: Activation, state: Zonotope, at: Tensor) -> Pair:
        """Kinks: stop-loss bounds. Curvature C: ½C e². Always: 2K|e|."""
        s = self.sizes(state)
        most = (
            2 * rule.lipschitz * (s.first + s.rest[0]),
            2 * rule.lipschitz * (s.deviation + s.rest[1]),
        )
        if rule.kinks is not None:
            over = [stop_loss(s.flipped(at > kink), (at - kink).abs()) for kink in rule.kinks]
            found = [rule.bend * torch.stack(v).sum(0) for v in zip(*over, strict=True)]
            return least((found[0], found[1]), most)
        if rule.curvature is not None:
            return least(curved(s, rule.curvature, rule.lipschitz), most)
        return most


def _rest_sizes(rest: Rest, part: Tensor) -> list[Tensor]:
    """Σ of the rest symbols' shares: up, down and both, a pair each; (b, *s)."""
    above, below = part.clamp(min=0), (-part).clamp(min=0)

    def share(a: Tensor, b: Tensor) -> Tensor:
        return (above * wide(a, part)).sum(0) + (below * wide(b, part)).sum(0)

    pairs = ((rest.up, rest.down), (rest.down, rest.up), (rest.both, rest.both))
    return [share(a, b) for ends in pairs for a, b in zip(*ends, strict=True)]
