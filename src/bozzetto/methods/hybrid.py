"""Hybrid: the layer's leading exact factors, and signs for what they leave."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from bozzetto.maps import LinearMap
from bozzetto.methods.lowrank import LowRank, balanced, truncate
from bozzetto.methods.method import Method, Objective, fresh_bias_
from bozzetto.methods.signs import (
    Sides,
    SignsMethod,
    choose_sides,
    largest_signs,
    write_signs_,
)
from bozzetto.nn.parts import Sum, write_weight_

_SHARES = (0.06, 0.15, 0.3, 0.5)  # of the multiply-adds, for the exact factors
_ROUNDS = 2  # of the alternation; a third changes the error by less than 1 %


class Parts(NamedTuple):
    """W ≈ B A + Σ signs."""

    a: Tensor  # (g, r, d)
    b: Tensor  # (g, m, r)
    sides: list[Sides]

    def weight(self) -> Tensor:
        """(g, m, d)."""
        return self.b @ self.a + torch.stack([side.weight() for side in self.sides])


@dataclass(frozen=True)
class Hybrid(Method):
    """W ≈ B A + Tᵀ M S: r exact factors, and as many signs as fit the dense multiply-adds.

    Size is r. The signs are those that `SignsMethod` would choose for what the exact factors
    leave; then factors and core are fitted in turn, each exactly.
    """

    recovers: ClassVar[bool] = False

    def values(self, m: LinearMap, size: int) -> int:
        """r(m + d) + k² a group; the dense number where no signs are left."""
        k = largest_signs(m, size)
        return m.weight.numel() if k < 1 else (size * sum(m.block) + k * k) * m.op.groups

    def sizes(self, m: LinearMap) -> list[int]:
        """At some shares of the multiply-adds."""
        most = m.weight.numel() // m.op.groups / sum(m.block)
        return sorted({r for s in _SHARES if 1 <= (r := round(s * most)) <= self.most(m)})

    def build(self, m: LinearMap, size: int, seed: int) -> nn.Module:
        """Sum(what `LowRank` builds, what `SignsMethod` builds)."""
        bare = replace(m, bias=None)
        exact = cast(nn.Sequential, LowRank().build(bare, size, seed))
        signs = cast(nn.Sequential, SignsMethod().build(bare, largest_signs(m, size), seed))
        with torch.no_grad():
            for part in (exact[1], signs[1]):
                cast(Tensor, part.weight).mul_(0.5**0.5)
        bias = None if m.bias is None else torch.empty_like(m.bias.detach())
        layer = Sum(exact, signs, bias=bias, dim=m.op.dim)
        fresh_bias_(layer.bias, m)
        return layer

    def fit_(self, layer: nn.Module, objective: Objective) -> None:
        """Both parts in turn."""
        exact, signs = cast(Sum, layer).terms
        first, second = cast(nn.Sequential, exact)
        parts = self._parts(objective, cast(Tensor, second.weight).shape[1])
        for part, value in zip((first, second), balanced(parts.a, parts.b), strict=True):
            write_weight_(part, value)
        write_signs_(signs, parts.sides)
        objective.shift_bias_(self.bias(layer), self.weight(layer, objective.map))

    def _parts(self, objective: Objective, size: int) -> Parts:
        """Exact factors, signs for the rest, then both again for what the other leaves."""
        w = objective.w
        a, b = truncate(objective, w, size)
        sides = choose_sides(objective, w - b @ a, largest_signs(objective.map, size))
        for _ in range(_ROUNDS):
            a, b = truncate(objective, w - torch.stack([side.weight() for side in sides]), size)
            sides = [side.at(rest) for side, rest in zip(sides, w - b @ a, strict=True)]
        return Parts(a, b, sides)

    def weight(self, layer: nn.Module, m: LinearMap) -> Tensor:
        """B A + Tᵀ M S."""
        exact, signs = cast(Sum, layer).terms
        return LowRank().weight(exact, m) + SignsMethod().weight(signs, m)

    def errors(self, objective: Objective, sizes: Sequence[int]) -> list[float]:
        """Of a fit at every size."""
        fits = (self._parts(objective, size).weight() for size in sizes)
        return [objective.error(objective.w - fit) for fit in fits]
