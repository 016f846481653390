"""Errors as sums of signed symbols: what depends on which crashed neuron is carried exactly.

A layer's error is shift + Σ E·symbol. A block of symbols stands for one layer of neurons; its E is
the healthy Jacobian from that layer. Each neuron has a mask symbol (exact), a drift symbol (the
neuron crashes *and* was wrong already) and a rest symbol (what its activation bends).
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bozzetto.analysis.crash.activations import Activation
from bozzetto.analysis.crash.moments import Unit, sum_of
from bozzetto.analysis.crash.rules import Affine, Combine, Concat, Maximum, Mixing
from bozzetto.analysis.crash.symbols import (
    Block,
    Pair,
    Zonotope,
    either,
    fresh_rest,
    rising,
)
from bozzetto.analysis.crash.walk import Domain


class TooLarge(Exception):
    """The coefficients would need more numbers than allowed."""


@dataclass(frozen=True)
class Race:
    """Max pooling's windows (b, entries, *out), their winners (b, 1, *out), what these carry."""

    entries: Tensor
    best: Tensor
    parts: Mapping[int, Tensor]
    apart: Zonotope  # value: the winner's lead over every entry; the difference of their errors
    lost: Tensor  # whether an entry is a loser

    def of_winner(self, entries: Tensor) -> Tensor:
        """The winner's entry, (b, *out)."""
        return entries.gather(1, self.best).squeeze(1)

    def of_losers(self, entries: Tensor) -> Tensor:
        """The sum of all other entries, (b, *out)."""
        return torch.where(self.lost, entries, 0.0).sum(1)


class ZonotopeDomain(Domain[Zonotope]):
    """The linear half; subclasses say how large symbols are and what activations leave."""

    def __init__(self, unit: Unit, most: int) -> None:
        """Take the unit that crashes and the most elements E may have."""
        self.unit, self.most = unit, most
        self.blocks: list[Block] = []

    def start(self, x: Tensor) -> Zonotope:
        """No error, no symbols."""
        return Zonotope(x, torch.zeros_like(x))

    def settled(self, state: Zonotope) -> Zonotope:
        """The state with its fresh symbols as a block of their own."""
        fresh = state.fresh
        if fresh is None:
            return state
        shape = state.value.shape[1:]
        n = shape.numel()
        self._check(n, fresh.hit)

        self.blocks.append(fresh.block(n // shape[0] if self.unit == "channel" else 1))
        basis = torch.eye(n, dtype=fresh.hit.dtype, device=fresh.hit.device).reshape(n, 1, *shape)
        return replace(state, parts={**state.parts, len(self.blocks) - 1: basis}, fresh=None)

    def share(self, state: Zonotope) -> Zonotope:
        """Its fresh symbols become one block for all its ways."""
        return self.settled(state)

    def _check(self, symbols: int, value: Tensor) -> None:
        if symbols * value.numel() > self.most:
            raise TooLarge

    def affine(self, rule: Affine, state: Zonotope) -> Zonotope:
        """Everything passes with its sign."""
        state = self.settled(state)
        value = rule.run(state.value)

        self._check(sum(len(part) for part in state.parts.values()), value)

        def through(part: Tensor) -> Tensor:
            return rule.linear(part.flatten(0, 1)).reshape(*part.shape[:2], *value.shape[1:])

        parts = {k: through(part) for k, part in state.parts.items()}
        return Zonotope(value, rule.linear(state.shift), parts)

    def combine(self, rule: Combine, states: Sequence[Zonotope]) -> Zonotope:
        """Branches share symbols: their coefficients add."""
        settled = [self.settled(state) for state in states]
        signed = list(zip(rule.signs, settled, strict=True))
        keys = {k for x in settled for k in x.parts}
        parts = {k: sum_of(s * x.parts[k] for s, x in signed if k in x.parts) for k in keys}
        value, shift = (sum_of(s * getattr(x, n) for s, x in signed) for n in ("value", "shift"))
        return Zonotope(value, shift, parts)

    def concat(self, rule: Concat, states: Sequence[Zonotope]) -> Zonotope:
        """Side by side."""
        settled = [self.settled(state) for state in states]
        keys = {k for x in settled for k in x.parts}
        width = {k: max(x.parts[k].shape[1] for x in settled if k in x.parts) for k in keys}

        def part(x: Zonotope, k: int) -> Tensor:
            n, shape = len(self.blocks[k].hit), x.value.shape[1:]
            found = x.parts.get(k, x.value.new_zeros(n, 1, *shape))
            return found.expand(n, width[k], *shape)

        dim = rule.dim if rule.dim < 0 else rule.dim + 1
        parts = {k: torch.cat([part(x, k) for x in settled], dim) for k in keys}
        value, shift = (
            torch.cat([getattr(x, n) for x in settled], rule.dim) for n in ("value", "shift")
        )
        return Zonotope(value, shift, parts)

    def activate(self, rule: Activation, state: Zonotope) -> Zonotope:
        """The tangent at the shifted value passes on; what bends away becomes a rest symbol."""
        state = self.settled(state)
        at = state.value + state.shift
        rest = self.bent(rule, state, at)
        slope = rule.slope(at)
        sign = rising if rule.convex else either
        fresh = fresh_rest(sign(rest), nonnegative=rule.nonnegative)
        value = rule.function(state.value)
        parts = {k: part * slope for k, part in state.parts.items()}
        return Zonotope(value, rule.function(at) - value, parts, fresh)

    def maximum(self, rule: Maximum, state: Zonotope) -> Zonotope:
        """The winner's error passes on; a loser that overtakes it becomes a rest symbol."""
        state = self.settled(state)
        race = self.race(rule, state, state.value + state.shift)
        over = rising(self.overtaken(rule, state, race))
        value = rule.run(state.value)
        shift = rule.run(state.value + state.shift) - value
        return Zonotope(value, shift, race.parts, fresh_rest(over))

    def overtaken(self, rule: Maximum, state: Zonotope, race: Race) -> Pair:
        """How far losers may rise above the winner: Σ (their error − its error − its lead)₊."""
        over = self.above(race.apart, torch.where(race.lost, race.apart.value, 0.0))
        return race.of_losers(over[0]), race.of_losers(over[1])

    def race(self, rule: Maximum, state: Zonotope, at: Tensor) -> Race:
        """Who wins each window at the values `at`, and the others' errors apart from its own."""
        entries = rule.windows(at)  # (b, entries, *out)
        best = entries.argmax(1, keepdim=True)
        gap = entries.gather(1, best) - entries

        def windows(part: Tensor) -> Tensor:
            found = rule.windows(part.flatten(0, 1)).nan_to_num(neginf=0.0)
            found = found.unflatten(0, part.shape[:2])
            return found.expand(-1, len(gap), *found.shape[2:])  # (n, b, entries, *out)

        cut = {k: windows(part) for k, part in state.parts.items()}
        won = {k: v.gather(2, best.expand(len(v), *best.shape)) for k, v in cut.items()}
        apart = Zonotope(gap, torch.zeros_like(gap), {k: v - won[k] for k, v in cut.items()})
        lost = gap.isfinite() & ~torch.zeros_like(gap, dtype=torch.bool).scatter(1, best, True)
        return Race(entries, best, {k: v.squeeze(2) for k, v in won.items()}, apart, lost)

    def mixing(self, rule: Mixing, state: Zonotope) -> Zonotope:
        """Only the shift passes; all else becomes rest symbols."""
        state = self.settled(state)
        value = rule.run(state.value)
        shift = rule.run(state.value + state.shift) - value

        def through(e: Tensor) -> Tensor:
            others = e.sum(rule.dim, keepdim=True) - e
            return rule.own * e + rule.other * others

        first, second = self.size(state)
        size = through(first), through(second)
        return Zonotope(value, shift, {}, fresh_rest(either(size)))

    @abstractmethod
    def bent(self, rule: Activation, state: Zonotope, at: Tensor) -> Pair:
        """How much of the error about `at` an activation bends away from its tangent."""

    @abstractmethod
    def above(self, state: Zonotope, gap: Tensor) -> Pair:
        """How far the error about the shift rises above `gap`."""

    @abstractmethod
    def size(self, state: Zonotope) -> Pair:
        """How large the error about the shift is."""
