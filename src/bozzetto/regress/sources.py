"""Sources of observations: each reduces a measurement of blocks to one sum, one reading a call."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
import torch
from sklearn.model_selection import GroupKFold, check_cv

from bozzetto.regress.designs import Dense, RankOne
from bozzetto.regress.moments import Block

__all__ = ["Arrays", "Batches", "S", "Source", "blocks_of", "dense", "merged"]

CHUNK = 1 << 21  # entries of covariates measured at once: they stay near the processor's cache


class Sums(Protocol):
    """What can be measured: sums that combine."""

    def merge(self, other: Self) -> Self:
        """The sums of both."""
        ...


S = TypeVar("S", bound=Sums)


@runtime_checkable
class Source(Protocol):
    """Observations that can be read as often as needed."""

    def reduce(self, measure: Callable[[Block], S]) -> S:
        """The merged measurements of all blocks."""
        ...


def dense(x: np.ndarray) -> Dense:
    """An array as covariates, without a copy unless it is read-only (a memory map) or strided."""
    return Dense(torch.from_numpy(np.require(x, requirements=["C", "W"])))


def blocks_of(x: np.ndarray | RankOne, y: np.ndarray, weight: np.ndarray) -> Iterator[Block]:
    """Blocks of a few million entries; observations of no weight are left out.

    Covariates x (n, p₁, …) of floats, responses y (n, q₁, …), weights (n,) ≥ 0, all checked.
    """
    entries = math.prod(x.shape[1:]) if isinstance(x, np.ndarray) else sum(x.shape)
    rows = max(1, CHUNK // entries)
    for start in range(0, len(y), rows):
        part = slice(start, start + rows)
        w = torch.tensor(weight[part], dtype=torch.float64)
        if not (w > 0).any():
            continue
        block = dense(x[part]) if isinstance(x, np.ndarray) else x[part]
        targets, keep = torch.tensor(y[part], dtype=torch.float64), w > 0
        yield Block(block, targets, w) if keep.all() else Block(block[keep], targets[keep], w[keep])


@dataclass(frozen=True)
class Arrays:
    """Observations in (memory-mapped) arrays: x (n, p₁, …), y (n, q₁, …), weight (n,).

    Those with one label in groups (n,) stay together in `folds`.
    """

    x: np.ndarray | RankOne
    y: np.ndarray
    weight: np.ndarray
    groups: np.ndarray | None = None

    def reduce(self, measure: Callable[[Block], S]) -> S:
        """The merged measurements of all blocks.

        Raises:
            ValueError: if no observation has a positive weight.
        """
        return merged(map(measure, blocks_of(self.x, self.y, self.weight)))

    def folds(self, cv: Any) -> "Iterator[tuple[Arrays, Arrays]]":
        """What is kept and what is held out, fold by fold, by scikit-learn's conventions for `cv`.

        An int with `groups` means that many sets of whole groups, or as many as there are groups.
        """
        if isinstance(cv, int) and self.groups is not None:
            cv = GroupKFold(min(cv, len(np.unique(self.groups))))
        splitter: Any = check_cv(cv)
        rows = np.arange(len(self.y))
        for kept, held in splitter.split(rows, self.y, self.groups):
            parts = [np.where(np.isin(rows, part), self.weight, 0.0) for part in (kept, held)]
            yield replace(self, weight=parts[0]), replace(self, weight=parts[1])


@dataclass(frozen=True)
class Batches:
    """Observations that come batch by batch, read anew at every pass and never all held.

    Batches are (x, y) or (x, y, weight); x is an array (b, p₁, …) or a `RankOne`.

    Raises:
        TypeError: for a generator or another iterator that can be read only once.
    """

    batches: Iterable[Any]

    def __post_init__(self) -> None:
        if iter(self.batches) is self.batches:
            raise TypeError(
                "every pass reads the batches anew, so they must be an iterable such as a list, a "
                f"Dataset or an object with __iter__; got a {type(self.batches).__name__}, which "
                "can be read only once"
            )

    def reduce(self, measure: Callable[[Block], S]) -> S:
        """The merged measurements of all batches.

        Raises:
            ValueError: for an invalid batch, or if there is none.
        """
        blocks = (block for batch in self.batches for block in blocks_of(*checked_batch(batch)))
        return merged(map(measure, blocks))


def merged(sums: Iterator[S]) -> S:
    """All sums in one.

    Raises:
        ValueError: if there is none.
    """
    total = next(sums, None)
    if total is None:
        raise ValueError("at least one observation of positive weight is needed; got none")
    for part in sums:
        total = total.merge(part)
        del part  # not to be held while the next one is made
    return total


def checked_batch(batch: Any) -> tuple[np.ndarray | RankOne, np.ndarray, np.ndarray]:
    """Covariates, responses and weights of one batch: floats, finite, of one length.

    Raises:
        ValueError: if they are not.
    """
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        raise ValueError(f"a batch is (x, y) or (x, y, weight); got {type(batch).__name__}")
    x, y = batch[0], _numbers(batch[1])
    if not isinstance(x, RankOne):
        x = _numbers(x)
    weight = np.ones(len(y)) if len(batch) == 2 else _numbers(batch[2])
    if not len(x) == len(y) == len(weight):
        raise ValueError(
            "x, y and weights of a batch must have one length; "
            f"got {len(x)}, {len(y)} and {len(weight)}"
        )
    parts = [*x.factors, y, weight] if isinstance(x, RankOne) else [x, y, weight]
    if not all(bool(np.isfinite(np.sum(np.asarray(part)))) for part in parts):
        raise ValueError("covariates, responses and weights must be finite; got NaN or infinity")
    if (weight < 0).any():
        raise ValueError(f"weights must not be negative; got {weight.min()}")
    return x, y, weight


def _numbers(values: Any) -> np.ndarray:
    """An array of floats with an axis of observations; float32 stays as it is."""
    try:
        found = np.asarray(values)
        found = found if found.dtype in (np.float32, np.float64) else found.astype(np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"a batch is made of arrays of numbers; {error}") from error
    if not found.ndim:
        raise ValueError(f"the arrays of a batch need an axis of observations; got {values!r}")
    return found
