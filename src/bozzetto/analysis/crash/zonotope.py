"""Zonotopes through a network: what depends on which neuron crashed is carried with its sign.

A layer's error is shift + Σ coefficient·symbol. A block of symbols stands for one layer of neurons.
Each neuron has a mask symbol (it crashes), a drift symbol (it crashes *and* was wrong already) and
a rest symbol (what its activation bends); drift and rest share the healthy Jacobian from there.
"""

import functools
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bozzetto.analysis.crash.activations import Activation, activation
from bozzetto.analysis.crash.moments import Unit
from bozzetto.analysis.crash.rules import Affine, Combine, Concat, Maximum, Mixing
from bozzetto.analysis.crash.symbols import (
    Block,
    Pair,
    Rest,
    Zonotope,
    either,
    fresh_rest,
    grouped,
    none,
    rising,
    total,
)
from bozzetto.analysis.crash.walk import Domain

_OUTSIDE = -1e30  # the value of padding in a max pooling window: it never wins
_RELU = activation(torch.nn.ReLU())


class TooLarge(Exception):
    """The coefficients would need more numbers than allowed."""


class ZonotopeDomain(Domain[Zonotope]):
    """The linear half; subclasses say how large symbols are and what activations leave."""

    def __init__(self, unit: Unit, most: int) -> None:
        """Take the unit that crashes and the most coefficients to hold."""
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
        n, k = shape.numel(), len(self.blocks)
        self._check(2 * n, state.value)
        groups = n // shape[0] if self.unit == "channel" and shape else 1
        self.blocks.append(fresh.block(groups))
        basis = torch.eye(n, dtype=state.value.dtype, device=state.value.device)
        basis = basis.reshape(n, 1, *shape)
        masks = dict(state.masks)
        if fresh.rate:
            masks[k] = grouped(basis * fresh.response, groups)
        return replace(state, masks=masks, parts={**state.parts, k: basis}, fresh=None)

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
        symbols = sum(len(v) for v in (*state.masks.values(), *state.parts.values()))
        self._check(symbols, value)

        def through(part: Tensor) -> Tensor:
            return rule.linear(part.flatten(0, 1)).reshape(*part.shape[:2], *value.shape[1:])

        masks, parts = (
            {k: through(v) for k, v in kind.items()} for kind in (state.masks, state.parts)
        )
        return Zonotope(value, rule.linear(state.shift), masks, parts)

    def combine(self, rule: Combine, states: Sequence[Zonotope]) -> Zonotope:
        """Branches share symbols: their coefficients add."""
        return total(rule.signs, [self.settled(state) for state in states])

    def concat(self, rule: Concat, states: Sequence[Zonotope]) -> Zonotope:
        """Side by side."""
        settled = [self.settled(state) for state in states]
        value, shift = (
            torch.cat([getattr(x, n) for x in settled], rule.dim) for n in ("value", "shift")
        )
        masks, parts = (self._beside(rule, settled, name) for name in ("masks", "parts"))
        return Zonotope(value, shift, masks, parts)

    def _beside(self, rule: Concat, states: Sequence[Zonotope], name: str) -> dict[int, Tensor]:
        dim, found = rule.dim if rule.dim < 0 else rule.dim + 1, {}
        for k in {k for x in states for k in getattr(x, name)}:
            some = [getattr(x, name)[k] for x in states if k in getattr(x, name)]
            lead = len(some[0]), max(v.shape[1] for v in some)

            def part(x: Zonotope, k: int = k, lead: tuple[int, int] = lead) -> Tensor:
                shape = x.value.shape[1:]
                known = getattr(x, name).get(k, x.value.new_zeros(lead[0], 1, *shape))
                return known.expand(*lead, *shape)

            found[k] = torch.cat([part(x) for x in states], dim)
        return found

    def activate(self, rule: Activation, state: Zonotope) -> Zonotope:
        """What bends away from a straight line becomes a rest symbol."""
        return self.through(rule, self.settled(state))

    def through(self, rule: Activation, state: Zonotope) -> Zonotope:
        """The tangent at the shifted value passes on; fresh remainders stay fresh."""
        at = state.value + state.shift
        size = self.bent(rule, state, at)
        slope = rule.slope(at)
        rest = rising(size) if rule.convex else either(size)
        if state.fresh is not None:
            assert rule.monotone
            rest = rest.joined(state.fresh.rest.map(lambda v: slope * v))
        value = rule.function(state.value)
        return replace(
            state.scaled(slope),
            value=value,
            shift=rule.function(at) - value,
            fresh=fresh_rest(rest),
        )

    def maximum(self, rule: Maximum, state: Zonotope) -> Zonotope:
        """max(w, x, y, …) = max(w, x) + (y − max(w, x))₊ and so on, from the likely winner w on.

        This is for masks; errors pass as the winner's, but for |max(Y+e) − max Y − e_w|, which is
        at most Σ_k |e_k − e_w| over those k that are ever ahead of w, or but for max_k |e_k|.
        """
        state = self.settled(state)
        self._check(2 * sum(len(v) for v in state.parts.values()), state.value)
        winner, *others = _entries(rule, state)
        if not others:
            return winner
        best = replace(winner, parts={})
        for other in others:
            over = self.through(_RELU, total((1.0, -1.0), (replace(other, parts={}), best)))
            best = total((1.0, 1.0), (best, over))
        rest = none(best.value) if best.fresh is None else best.fresh.rest
        apart = functools.reduce(Rest.joined, [self.overtaken(winner, x) for x in others])
        whole = self.any_of([winner, *others])
        follow = apart.both[0] + self.errors(winner).both[0] <= whole.both[0]
        parts = {k: torch.where(follow, v, 0.0) for k, v in winner.parts.items()}
        rest = rest.joined(apart.where(follow, whole))
        return replace(best, parts=parts, fresh=fresh_rest(rest))

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
        return Zonotope(value, shift, fresh=fresh_rest(either(size)))

    @abstractmethod
    def errors(self, state: Zonotope) -> Rest:
        """How large the error about the shift is but for masks."""

    @abstractmethod
    def any_of(self, entries: Sequence[Zonotope]) -> Rest:
        """How large the errors of entries of a window are, whichever of them counts."""

    @abstractmethod
    def overtaken(self, best: Zonotope, other: Zonotope) -> Rest:
        """|e_other − e_best| where the other entry of a window may be ahead."""

    @abstractmethod
    def bent(self, rule: Activation, state: Zonotope, at: Tensor) -> Pair:
        """How much of the error about `at` an activation bends away from its tangent."""

    @abstractmethod
    def size(self, state: Zonotope) -> Pair:
        """How large the error about the shift is."""


def largest(entries: Sequence[Zonotope]) -> list[Zonotope]:
    """Errors whose sum is no less than any entry's: each symbol's highest and lowest coefficient.

    Symbols count with their sizes, as rest symbols do, not with what they cancel.
    """
    parts = {k: torch.stack([x.parts[k] for x in entries]) for k in entries[0].parts}
    high = {k: v.amax(0).clamp(min=0) for k, v in parts.items()}
    low = {k: v.amin(0).clamp(max=0) for k, v in parts.items()}
    return [replace(entries[0], parts=some) for some in (high, low)]


def _entries(rule: Maximum, state: Zonotope) -> list[Zonotope]:
    """Max pooling's windows as one state an entry, the largest shifted value first."""
    value = rule.windows(state.value).clamp(min=_OUTSIDE)  # (b, entries, *out)
    shift = rule.windows(state.shift).nan_to_num(neginf=0.0)
    order = (value + shift).argsort(1, descending=True)

    def sorted_(part: Tensor) -> Tensor:
        found = rule.windows(part.flatten(0, 1)).nan_to_num(neginf=0.0)
        found = found.unflatten(0, part.shape[:2])  # (n, 1 or b, entries, *out)
        found = found.expand(-1, len(order), *found.shape[2:])
        return found.gather(2, order.expand(len(found), *order.shape))

    value, shift = value.gather(1, order), shift.gather(1, order)
    masks, parts = ({k: sorted_(v) for k, v in kind.items()} for kind in (state.masks, state.parts))

    def entry(i: int) -> Zonotope:
        ours, theirs = ({k: v[:, :, i] for k, v in kind.items()} for kind in (masks, parts))
        return Zonotope(value[:, i], shift[:, i], ours, theirs)

    return [entry(i) for i in range(order.shape[1])]
