"""`GroupedStats`: the moments of a large network, never held of more than a group of its layers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from bozzetto.expand import expand
from bozzetto.maps import LinearMap
from bozzetto.moments import RANK, WIDE
from bozzetto.ops import Lookup
from bozzetto.sites import find_sites, users
from bozzetto.stats import Loss, Stats, collect, layer_maps

__all__ = ["GroupedStats", "moment_bytes"]


class GroupedStats(Mapping[str, Stats]):
    """What `collect` gives, gathered when asked for, a group of neighbouring layers at a time.

    A group's moments take at most so many bytes, or are those of one layer (and of those tied to
    it). Asking for a layer of another group drops this one's and passes over the batches again: ask
    in the order of the layers.

    Args:
        model: the target; not changed, and the same whenever stats are asked for.
        batches: of the calibration.
        most: bytes of a group's moments.
        loss: as of `collect`.
        robustness: of `Stats.crashed`.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        *,
        most: int,
        loss: Loss | None = None,
        robustness: float = 0.0,
    ) -> None:
        self.model, self.batches, self.loss, self.robustness = model, batches, loss, robustness
        self.groups = _groups(model, most)
        self._place = {path: i for i, group in enumerate(self.groups) for path in group}
        self._held: tuple[int, dict[str, Stats]] = -1, {}

    def _group(self, number: int) -> dict[str, Stats]:
        if self._held[0] != number:
            self._held = -1, {}  # dropped before others are gathered
            found = collect(self.model, self.batches, loss=self.loss, paths=self.groups[number])
            self._held = number, {p: s.crashed(self.robustness) for p, s in found.items()}
        return self._held[1]

    def __getitem__(self, path: str) -> Stats:
        """Of a layer that calibration reached."""
        return self._group(self._place[path])[path]

    def __iter__(self) -> Iterator[str]:
        """The layers that calibration reached, group by group."""
        for number in range(len(self.groups)):
            yield from list(self._group(number))

    def __len__(self) -> int:
        """How many those are."""
        return sum(1 for _ in self)


def moment_bytes(m: LinearMap) -> int:
    """Of both moments of a map, as `collect` keeps them."""

    def side(n: int) -> int:
        return 8 * m.op.groups * n * (n if n <= WIDE else RANK + 1)

    rows, d = m.block
    return side(rows) + (8 * m.inputs if isinstance(m.op, Lookup) else side(d))


def _groups(model: nn.Module, most: int) -> list[list[str]]:
    """Paths of the layers in order, those of one weight together, as many as fit."""
    expanded = expand(model, weights="shared")
    maps = layer_maps(expanded)
    sites = find_sites(expanded)[0].values()
    tied = {p: (s.path, *users(s)) for s in sites for p in (s.path, *users(s))}
    groups: list[list[str]] = []
    placed, held = set[str](), 0
    for path in maps:
        if path in placed:
            continue
        together = [p for p in tied.get(path, (path,)) if p in maps]
        size = sum(moment_bytes(maps[p]) for p in together)
        if not groups or held + size > most:
            groups.append([])
            held = 0
        groups[-1] += together
        placed.update(together)
        held += size
    return groups
