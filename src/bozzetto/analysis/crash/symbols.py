"""Blocks of symbols, one for each layer of neurons, and errors that are sums of them."""

from collections.abc import Callable, Mapping
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


def plus(a: Pair, b: Pair) -> Pair:
    """Sums of bounds."""
    return a[0] + b[0], a[1] + b[1]


def rising(size: Pair) -> Rest:
    """Remainders that are never negative."""
    zero = torch.zeros_like(size[0])
    return Rest(size, (zero, zero), size)


def falling(size: Pair) -> Rest:
    """Remainders that are never positive."""
    zero = torch.zeros_like(size[0])
    return Rest((zero, zero), size, size)


def either(size: Pair) -> Rest:
    """Remainders of any sign."""
    return Rest(size, size, size)


@dataclass(frozen=True)
class Block:
    """A layer's symbols; all (n, b), `groups` of consecutive neurons share one mask."""

    rate: float
    groups: int
    hit: Tensor  # the mask symbol's coefficient
    drift: Pair
    rest: Rest


@dataclass(frozen=True)
class Fresh:
    """Symbols of the last activation or crash, not yet mixed by weights; all (b, *s)."""

    rate: float
    hit: Tensor
    drift: Pair
    rest: Rest
    nonnegative: bool = False  # whether the neurons' outputs surely are

    def block(self, groups: int) -> Block:
        """The same symbols as a block."""

        def flat(v: Tensor) -> Tensor:
            return v.flatten(1).T

        drift = flat(self.drift[0]), flat(self.drift[1])
        return Block(self.rate, groups, flat(self.hit), drift, self.rest.map(flat))

    def only_rest(self) -> "Fresh":
        """Without mask and drift symbols."""
        return fresh_rest(self.rest)


def fresh_rest(rest: Rest, *, nonnegative: bool = False) -> Fresh:
    """Only remainders."""
    zero = torch.zeros_like(rest.up[0])
    return Fresh(0.0, zero, (zero, zero), rest, nonnegative)


@dataclass(frozen=True)
class Zonotope:
    """Healthy value and error of one layer."""

    value: Tensor  # (b, *s)
    shift: Tensor  # (b, *s)
    parts: Mapping[int, Tensor] = field(default_factory=dict)  # E by block, (n, 1 or b, *s)
    fresh: Fresh | None = None


def wide(stat: Tensor, part: Tensor) -> Tensor:
    """(n, b) shaped to multiply E (n, b, *s)."""
    return stat.reshape(*stat.shape, *[1] * (part.ndim - 2))
