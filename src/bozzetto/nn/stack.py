"""`Stack`: several sketches as one, so that all terms of a layer share one matrix product."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from bozzetto.sketch import Sketch


class Stack(Sketch):
    """U = [U_1; …; U_l]/√l: the l terms of a sketched layer, as a sketch of all their rows."""

    def __init__(self, sketches: Sequence[Sketch]) -> None:
        super().__init__(sketches[0].n, sum(s.k for s in sketches), sketches[0].seed)
        self.parts = nn.ModuleList(sketches)
        self.scale = len(sketches) ** -0.5

    def _with_rows(self, y: Tensor, dim: int) -> list[tuple[Sketch, Tensor]]:
        parts = [cast(Sketch, part) for part in self.parts]
        return list(zip(parts, y.split([part.k for part in parts], dim), strict=True))

    def down(self, x: Tensor, dim: int = -1) -> Tensor:
        """The parts' rows, one after the other."""
        rows = [cast(Sketch, part).down(x, dim) for part in self.parts]
        return torch.cat(rows, dim) * self.scale

    def up(self, y: Tensor, dim: int = -1) -> Tensor:
        """The sum of what the parts bring up."""
        (first, rows), *rest = self._with_rows(y * self.scale, dim)
        x = first.up(rows, dim)
        for part, rows in rest:
            x = part.up_onto(x, rows, dim)
        return x

    def up_onto(self, base: Tensor, y: Tensor, dim: int = -1) -> Tensor:
        """Each part onto the one before."""
        for part, rows in self._with_rows(y * self.scale, dim):
            base = part.up_onto(base, rows, dim)
        return base

    def dense(self) -> Tensor:
        """All rows."""
        return torch.cat([cast(Sketch, part).dense() for part in self.parts]) * self.scale

    def lookup(self, table: Tensor, index: Tensor) -> Tensor:
        """The sum over the parts, each of its rows of the table."""
        found = [part.lookup(rows, index) for part, rows in self._with_rows(table, 0)]
        return torch.stack(found).sum(0) * self.scale

    def variance(self) -> float:
        """An l-th of the parts' mean: they are independent."""
        found = [cast(Sketch, part).variance() for part in self.parts]
        return sum(found) / len(found) ** 2


__all__ = ["Stack"]
