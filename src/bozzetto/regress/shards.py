"""Observations on many machines: a source whose sums are computed by Dask, where the data are."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from bozzetto.regress.moments import Block
from bozzetto.regress.sources import S, blocks_of, checked_batch, merged

__all__ = ["DaskShards"]


@dataclass(frozen=True)
class DaskShards:
    """Shards as `dask.delayed` values, each (x, y) or (x, y, weight); give it to `fit_batches`.

    Every pass measures each shard where it lies and adds the sums up in a binary tree: what travels
    is the directions to the shards and sums back, never covariates. Work lost with a worker is done
    again from the shard's own task, so that a shard should be a task that loads it. The scheduler
    is the one that Dask is set to: a `dask.distributed.Client`, or threads of this process.

    Needs the extra `dask`.
    """

    shards: tuple[Any, ...]

    @classmethod
    def of_arrays(cls, x: Any, y: Any, weight: Any = None) -> "DaskShards":
        """From dask arrays x (n, p₁, …), y (n, …), weight (n,): the blocks of x along n.

        Raises:
            ValueError: if they have different lengths.
        """
        from dask.delayed import delayed

        parts = [x.rechunk(dict.fromkeys(range(1, x.ndim), -1))]
        parts += [part for part in (y, weight) if part is not None]
        if len({len(part) for part in parts}) != 1:
            raise ValueError(f"one length is needed; got {[len(part) for part in parts]}")
        whole = [dict.fromkeys(range(1, part.ndim), -1) for part in parts]
        aligned = [
            part.rechunk({0: parts[0].chunks[0], **rest})
            for part, rest in zip(parts, whole, strict=True)
        ]
        columns = [part.to_delayed().ravel() for part in aligned]
        return cls(tuple(delayed(tuple)(list(shard)) for shard in zip(*columns, strict=True)))

    def reduce(self, measure: Callable[[Block], S]) -> S:
        """The merged measurements of all shards.

        Raises:
            ValueError: if there is no shard, for an invalid one, or for shapes that differ.
        """
        from dask.base import compute
        from dask.delayed import delayed

        if not self.shards:
            raise ValueError("at least one shard is needed; got none")
        once = delayed(measure, pure=False)  # one task: it travels to a worker once
        sums = [delayed(_measured)(shard, once) for shard in self.shards]
        while len(sums) > 1:
            pairs = [delayed(_added)(a, b) for a, b in zip(sums[::2], sums[1::2], strict=False)]
            sums = pairs + sums[len(sums) - len(sums) % 2 :]
        return compute(sums[0])[0]


def _measured(shard: Any, measure: Callable[[Block], S]) -> S:
    return merged(map(measure, blocks_of(*checked_batch(shard))))


def _added(a: S, b: S) -> S:
    """The sum, leaving both as they are: Dask may need them again."""
    return deepcopy(a).merge(deepcopy(b))
