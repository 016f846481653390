"""Errors as sums of signed symbols: one mask, drift and rest symbol for every crashed neuron."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
"""Bounds on E|·| and (E ·²)^½; or a supremum, twice."""


@dataclass(frozen=True)
class Rest:
    """What is known of remainders ρ: bounds on ρ₊, on ρ₋ and on |ρ|."""

    up: Pair
    down: Pair
    both: Pair

    def map(self, function: Callable[[Tensor], Tensor]) -> "Rest":
        """The same with every tensor changed."""
        up, down, both = (
            (function(first), function(second)) for first, second in (self.up, self.down, self.both)
        )
        return Rest(up, down, both)

    def joined(self, other: "Rest") -> "Rest":
        """Of the sum of two remainders."""
        ups, downs, boths = zip(
            (self.up, self.down, self.both), (other.up, other.down, other.both), strict=True
        )
        return Rest(plus(*ups), plus(*downs), plus(*boths))

    def pairs(self) -> tuple[Pair, Pair, Pair]:
        """The three bounds."""
        return self.up, self.down, self.both

    def where(self, here: Tensor, other: "Rest") -> "Rest":
        """These bounds here, the other's elsewhere."""
        pairs = zip(self.pairs(), other.pairs(), strict=True)
        up, down, both = [
            (torch.where(here, a[0], b[0]), torch.where(here, a[1], b[1])) for a, b in pairs
        ]
        return Rest(up, down, both)

    def signed(self, sign: float) -> "Rest":
        """Of sign·ρ for a sign of ±1."""
        return self if sign > 0 else Rest(self.down, self.up, self.both)


def plus(a: Pair, b: Pair) -> Pair:
    """Sums of bounds."""
    return a[0] + b[0], a[1] + b[1]


def least(a: Pair, b: Pair) -> Pair:
    """The smaller of two bounds."""
    return torch.minimum(a[0], b[0]), torch.minimum(a[1], b[1])


def rising(size: Pair) -> Rest:
    """Remainders that are never negative."""
    zero = torch.zeros_like(size[0])
    return Rest(size, (zero, zero), size)


def either(size: Pair) -> Rest:
    """Remainders of any sign."""
    return Rest(size, size, size)


def none(like: Tensor) -> Rest:
    """No remainder."""
    zero = torch.zeros_like(like)
    return either((zero, zero))


@dataclass(frozen=True)
class Block:
    """A layer's symbols but for its masks, all (n, b); `groups` neurons in a row share a mask."""

    rate: float
    groups: int
    drift: Pair
    rest: Rest


@dataclass(frozen=True)
class Fresh:
    """Symbols of the last activation or crash, not yet mixed by weights; all (b, *s)."""

    rate: float
    response: Tensor  # what a neuron's crash does to itself
    drift: Pair
    rest: Rest

    def block(self, groups: int) -> Block:
        """The same symbols as a block."""

        def flat(v: Tensor) -> Tensor:
            return v.reshape(len(v), -1).T

        drift = flat(self.drift[0]), flat(self.drift[1])
        return Block(self.rate, groups, drift, self.rest.map(flat))


def fresh_rest(rest: Rest) -> Fresh:
    """Only remainders."""
    zero = torch.zeros_like(rest.up[0])
    return Fresh(0.0, zero, (zero, zero), rest)


@dataclass(frozen=True)
class Zonotope:
    """Healthy value and error of one layer: shift + Σ masks·symbol + Σ parts·symbol + fresh."""

    value: Tensor  # (b, *s)
    shift: Tensor  # (b, *s)
    masks: Mapping[int, Tensor] = field(default_factory=dict)  # by block, (units, b, *s)
    parts: Mapping[int, Tensor] = field(default_factory=dict)  # by block, (n, 1 or b, *s)
    fresh: Fresh | None = None

    def scaled(self, by: Tensor | float) -> "Zonotope":
        """Coefficients times `by`; value, shift and fresh symbols stay."""
        masks = {k: by * v for k, v in self.masks.items()}
        parts = {k: by * v for k, v in self.parts.items()}
        return Zonotope(self.value, self.shift, masks, parts, self.fresh)


def total(signs: Iterable[float], states: Iterable[Zonotope]) -> Zonotope:
    """Σ sign·state: coefficients of shared symbols add; only rests may be fresh."""
    signed = list(zip(signs, states, strict=True))

    def added(name: str) -> Mapping[int, Tensor]:
        found: dict[int, Tensor] = {}
        for sign, state in signed:
            for k, v in getattr(state, name).items():
                found[k] = found[k] + sign * v if k in found else sign * v
        return found

    value = torch.stack([sign * state.value for sign, state in signed]).sum(0)
    shift = torch.stack([sign * state.shift for sign, state in signed]).sum(0)
    rest: Rest | None = None
    for sign, state in signed:
        if state.fresh is not None:
            assert state.fresh.rate == 0
            more = state.fresh.rest.signed(sign)
            rest = more if rest is None else rest.joined(more)
    fresh = None if rest is None else fresh_rest(rest)
    return Zonotope(value, shift, added("masks"), added("parts"), fresh)


def wide(stat: Tensor, part: Tensor) -> Tensor:
    """(n, b) shaped to multiply coefficients (n, b, *s)."""
    return stat.reshape(*stat.shape, *[1] * (part.ndim - 2))


def grouped(values: Tensor, groups: int) -> Tensor:
    """Sums over neurons that share a mask, (n, …) -> (units, …)."""
    return values if groups == 1 else values.unflatten(0, (-1, groups)).sum(1)
