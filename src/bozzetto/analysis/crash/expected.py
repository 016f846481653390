"""Zonotopes whose symbols are random: bounds on E|·| and (E ·²)^½ when neurons crash by chance.

Mask symbols are independent and exactly known; drift symbols are uncorrelated (a martingale
difference each); of rest symbols only the sizes are known.
"""

from dataclasses import replace

import torch
from torch import Tensor

from bozzetto.analysis.crash.activations import Activation
from bozzetto.analysis.crash.rules import Maximum
from bozzetto.analysis.crash.sizes import Sizes, curved, masks_above, stop_loss
from bozzetto.analysis.crash.sums import mean_absolute
from bozzetto.analysis.crash.symbols import (
    Block,
    Fresh,
    Pair,
    Rest,
    Zonotope,
    either,
    falling,
    rising,
    wide,
)
from bozzetto.analysis.crash.zonotope import Race, ZonotopeDomain


def _grouped(values: Tensor, groups: int) -> Tensor:
    return values if groups == 1 else values.unflatten(0, (-1, groups)).sum(1)


class ExpectedZonotope(ZonotopeDomain):
    """Independent crashes with a probability per layer."""

    def crash(self, state: Zonotope, rate: float) -> Zonotope:
        """As e ← (1−p)e − p h + (p−b)(h + shift) + (p−b)(e − shift): mask and drift symbols."""
        p, q = rate, 1 - rate
        first, second = self.size(state)
        spread = (p * q) ** 0.5
        none = rising((torch.zeros_like(first), torch.zeros_like(first)))
        rest = none if state.fresh is None else state.fresh.rest
        fresh = Fresh(
            p,
            state.value + state.shift,
            (2 * p * q * first, spread * second),
            rest.map(lambda v: q * v),
            nonnegative=state.fresh is not None and state.fresh.nonnegative,
        )
        return replace(
            state,
            shift=q * state.shift - p * state.value,
            parts={k: q * part for k, part in state.parts.items()},
            fresh=fresh,
        )

    def maximum(self, rule: Maximum, state: Zonotope) -> Zonotope:
        """After a crash of nonnegative neurons, a winner's crash costs only its lead."""
        fresh = state.fresh
        relays = rule.disjoint and self.unit == "neuron"
        if relays and fresh is not None and 0 < fresh.rate < 1 and fresh.nonnegative:
            return self._relay(rule, state, fresh)
        return super().maximum(rule, state)

    def _relay(self, rule: Maximum, state: Zonotope, fresh: Fresh) -> Zonotope:
        """max_k m_k y_k = w − b_w(w − s) + m_w ã_w + rest for y = ȳ + ã, ȳ's largest two w ≥ s.

        The rest is |·| ≤ b_w b_s s, plus Σ_k (ã_k − ã_w − (w − ȳ_k))₊ while the winner lives, plus
        Σ_{k≠w} |ã_k| when it does not.
        """
        p, q = fresh.rate, 1 - fresh.rate
        whole = replace(state, fresh=fresh.only_rest())
        wrong = self.size(whole)  # q·|ã| of every neuron
        whole = self.settled(whole)
        race = self.race(rule, whole, q * fresh.hit)
        over = self.overtaken(rule, whole, race)
        entries = rule.windows(fresh.hit)
        first = race.of_winner(entries)
        second = entries.scatter(1, race.best, -torch.inf).amax(1).clamp(min=0)
        lost = [race.of_losers(rule.windows(v)) for v in wrong]
        replaced = p / q * lost[0], p**0.5 / q * lost[1]
        rest = rising((over[0], over[1] / q**0.5)).joined(either(replaced))
        rest = rest.joined(falling((p * p * second, p * second)))
        drift = (
            race.of_winner(rule.windows(fresh.drift[0])),
            race.of_winner(rule.windows(fresh.drift[1])),
        )
        value = rule.run(state.value)
        after = Fresh(p, first - second, drift, rest)
        return Zonotope(value, first - p * (first - second) - value, race.parts, after)

    def overtaken(self, rule: Maximum, state: Zonotope, race: Race) -> Pair:
        """Less than Σ (X_k − X_w − lead)₊ + Σ (e_k)₊ + (e_w)₋ as well, which counts e_w once."""
        pairs = super().overtaken(rule, state, race)
        s = self.sizes(state)
        lead = torch.where(race.lost, race.apart.value, 0.0).clamp(min=1e-90)
        masks = masks_above(self.sizes(race.apart), lead)
        first, second = (
            torch.minimum(
                pair,
                race.of_losers(mask)
                + race.of_losers(rule.windows(up))
                + race.of_winner(rule.windows(down)),
            )
            for pair, mask, up, down in zip(pairs, masks, s.up, s.down, strict=True)
        )
        return first, second

    def sizes(self, state: Zonotope) -> Sizes:
        """The error's moments from its symbols (fresh ones must be rests only)."""
        total = [torch.zeros_like(state.value)] * 11
        for k, part in state.parts.items():
            for i, term in enumerate(_block_sizes(self.blocks[k], part)):
                total[i] = total[i] + term
        variance, cumulant, first, drift_first, drift, *rest = total
        if state.fresh is not None:
            assert state.fresh.rate == 0
            known = state.fresh.rest
            rest = [r + f for r, f in zip(rest, (*known.up, *known.down, *known.both), strict=True)]
        drift = drift.sqrt()
        drift_first = torch.minimum(drift, drift_first)
        return Sizes(
            variance,
            3 * variance**2 + cumulant,
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
        gains, rates, rows = [], [], state.value.numel()
        for k, part in state.parts.items():
            block = self.blocks[k]
            if block.rate:
                hits = _grouped(part * wide(block.hit, part), block.groups)
                gains.append(-hits.reshape(-1, rows))
                rates.append(hits.new_full((len(hits),), block.rate))
        if not gains:
            return state.shift.abs()
        gain, rate = torch.cat(gains), torch.cat(rates)
        start = state.shift.flatten() - rate @ gain
        return mean_absolute(start, gain, rate).reshape(state.value.shape)

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
        elif rule.curvature is not None:
            found = curved(s, rule.curvature, rule.lipschitz)
        else:
            return most
        return torch.minimum(found[0], most[0]), torch.minimum(found[1], most[1])

    def above(self, state: Zonotope, gap: Tensor) -> Pair:
        """E(e − gap)₊ and (E(e − gap)₊²)^½."""
        return stop_loss(self.sizes(state), gap)


def _block_sizes(block: Block, part: Tensor) -> tuple[Tensor, ...]:
    """One block's share of the moments: each (b, *s)."""
    spread = block.rate * (1 - block.rate)
    hits = _grouped(part * wide(block.hit, part), block.groups)
    squares, size = hits**2, part.abs()
    drift = _grouped(size * wide(block.drift[1], part), block.groups)
    return (
        spread * squares.sum(0),
        spread * (1 - 6 * spread) * (squares**2).sum(0),
        2 * spread * hits.abs().sum(0),
        (size * wide(block.drift[0], part)).sum(0),
        (drift**2).sum(0),
        *_rest_sizes(block.rest, part),
    )


def _rest_sizes(rest: Rest, part: Tensor) -> list[Tensor]:
    """Σ of the rest symbols' shares: up, down and both, a pair each; (b, *s)."""
    above, below = part.clamp(min=0), (-part).clamp(min=0)

    def share(a: Tensor, b: Tensor) -> Tensor:
        return (above * wide(a, part)).sum(0) + (below * wide(b, part)).sum(0)

    pairs = ((rest.up, rest.down), (rest.down, rest.up), (rest.both, rest.both))
    return [share(a, b) for ends in pairs for a, b in zip(*ends, strict=True)]
