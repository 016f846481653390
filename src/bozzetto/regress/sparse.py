"""Sparse ISLET: low-rank regression on tensors where few rows of some modes matter."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bozzetto.regress.checks import check_enough
from bozzetto.regress.directions import Directions
from bozzetto.regress.lasso import choose_rows
from bozzetto.regress.model import Ranks, TensorRegressor
from bozzetto.regress.moments import Block, Moments
from bozzetto.regress.refine import Fit, Settings, refine
from bozzetto.regress.sketched import LeastSquares
from bozzetto.regress.sources import S, Source
from bozzetto.tensors import Tucker, hooi, multi_product, unfold

__all__ = ["SparseISLETRegressor"]

ROUNDS = 5  # rows are found anew at the estimate's directions until they stay, at most so often


class SparseISLETRegressor(TensorRegressor):
    """Regression of a scalar on tensors, y = c + ⟨X, A⟩ + ε, A of low rank with few rows in use.

    Sparse ISLET (Zhang, Luo, Raskutti, Yuan, SIAM J. Math. Data Sci. 2020, §3). Along each of the
    `sparse_modes`, the rows of A in use are found by a group lasso on the sketched covariates and
    the extended BIC; then A is estimated on those rows as by `ISLETRegressor`. The first directions
    take the covariates' entries for uncorrelated and of one variance.

    Parameters:
        ranks: one rank for all modes, one a mode, or how to choose them, as in `ISLETRegressor`.
        sparse_modes: modes in which few rows are in use; None means all.
        shape, n_iter, tol, alpha, fit_intercept, max_rank, cv: as in `ISLETRegressor`.

    Attributes:
        support_: for every mode, the indices of the rows in use.
        coef_, core_, factors_, intercept_, ranks_, shape_, n_iter_, objectives_: as in
            `ISLETRegressor`.
    """

    _scalar = True

    def __init__(
        self,
        ranks: Ranks = 1,
        *,
        sparse_modes: Sequence[int] | None = None,
        shape: Sequence[int] | None = None,
        n_iter: int = 20,
        tol: float = 1e-2,
        alpha: float = 0.0,
        fit_intercept: bool = True,
        max_rank: int = 4,
        cv: Any = 5,
    ) -> None:
        super().__init__(
            ranks,
            shape=shape,
            n_iter=n_iter,
            tol=tol,
            alpha=alpha,
            fit_intercept=fit_intercept,
            max_rank=max_rank,
            cv=cv,
        )
        self.sparse_modes = sparse_modes

    def _estimate_at(
        self,
        source: Source,
        moments: Moments,
        ranks: tuple[int, ...],
        settings: Settings,
        first: Tucker | None = None,
    ) -> Fit:
        sparse = self._sparse(moments.mean_x.ndim)
        at = sparse_start(moments, ranks, sparse) if first is None else first
        rows, fit = self._round(source, moments, at, sparse, settings)
        for _ in range(ROUNDS):
            before = rows
            rows, fit = self._round(source, moments, fit.tucker, sparse, settings)
            if all(len(a) == len(b) and (a == b).all() for a, b in zip(rows, before, strict=True)):
                break
        self.support_ = tuple(row.numpy() for row in rows)
        return fit

    def _round(
        self,
        source: Source,
        moments: Moments,
        at: Tucker,
        sparse: Sequence[int],
        settings: Settings,
    ) -> tuple[tuple[Tensor, ...], Fit]:
        """The rows in use at the directions of `at`, and the estimate on them."""
        rows = find_rows(source, moments.square, at, sparse, settings)
        if settings.ridge == 0:
            check_enough(moments.count, [len(r) for r in rows], len(rows), at.ranks)
        factors = tuple(f[r] for f, r in zip(at.factors, rows, strict=True))
        small = Tucker(at.core, factors)
        fit = refine(Restricted(source, rows), moments.square, small, settings)
        factors = _spread(fit.tucker.factors, rows, at.shape)
        return rows, replace(fit, tucker=Tucker(fit.tucker.core, factors))

    def _sparse(self, order: int) -> list[int]:
        wanted = range(order) if self.sparse_modes is None else self.sparse_modes
        if not all(-order <= k < order for k in wanted):
            raise ValueError(f"sparse_modes must be modes of {order}; got {self.sparse_modes}")
        return sorted({k % order for k in wanted})


@dataclass(frozen=True)
class Restricted:
    """A source seen at some rows of every mode."""

    source: Source
    rows: tuple[Tensor, ...]

    def reduce(self, measure: Callable[[Block], S]) -> S:
        """The merged measurements of the restricted blocks."""
        return self.source.reduce(lambda b: measure(replace(b, x=b.x.restrict(self.rows))))


def _spread(
    factors: Sequence[Tensor], rows: Sequence[Tensor], shape: Sequence[int]
) -> tuple[Tensor, ...]:
    """Factors with zeros in the rows that are not in use."""
    triples = zip(factors, rows, shape, strict=True)
    return tuple(f.new_zeros(p, f.shape[1]).index_copy(0, r, f) for f, r, p in triples)


@dataclass
class Arms:
    """One regression for every sparse mode."""

    each: list[LeastSquares]

    def merge(self, other: "Arms") -> "Arms":
        """The sums of both sets of observations."""
        for mine, theirs in zip(self.each, other.each, strict=True):
            mine.merge(theirs)
        return self


def find_rows(
    source: Source, square: float, at: Tucker, sparse: Sequence[int], settings: Settings
) -> tuple[Tensor, ...]:
    """Rows in use along every mode, by group lasso on M_k(X_j) W_k at the directions of `at`."""
    directions, _ = Directions.at(at)

    def measure(block: Block) -> Arms:
        partials = block.x.partials(directions.spans)
        arms = [(partials[k] @ directions.rows[k]).flatten(1)[:, None] for k in sparse]
        return Arms([LeastSquares.of(arm, block.y[:, None, None], block.weight) for arm in arms])

    rows = [torch.arange(p) for p in at.shape]
    for k, sums in zip(sparse, source.reduce(measure).each, strict=True):
        sums = sums if settings.intercept else sums.about_zero()
        rows[k] = choose_rows(sums, at.shape[k], square, at.ranks[k]).nonzero().squeeze(1)
    return tuple(rows)


def sparse_start(moments: Moments, ranks: Sequence[int], sparse: Sequence[int]) -> Tucker:
    """HOOI of the covariance tensor at rows whose energy is above the noise's.

    Rows are judged at first in full, then at the other modes' directions, where the noise has fewer
    coordinates (Zhang, Han, JASA 2019).
    """
    scale = moments.variance()
    a = moments.cross / (moments.weight * scale)
    noise = moments.square / (moments.weight**2 * scale)  # variance of an entry of a
    rows = [torch.arange(p) for p in a.shape]
    for k in sparse:
        rows[k] = _above_noise(unfold(a, k), noise, ranks[k])
    tucker = _hooi_at(a, rows, ranks)
    for _ in range(3):
        for k in sparse:
            others = [None if j == k else u.T for j, u in enumerate(tucker.factors)]
            rows[k] = _above_noise(unfold(multi_product(a, others), k), noise, ranks[k])
        tucker = _hooi_at(a, rows, ranks)
    return tucker


def _hooi_at(a: Tensor, rows: Sequence[Tensor], ranks: Sequence[int]) -> Tucker:
    part = a
    for k, index in enumerate(rows):
        part = part.index_select(k, index)
    small = hooi(part, ranks)
    return Tucker(small.core, _spread(small.factors, rows, a.shape))


def _above_noise(matrix: Tensor, noise: float, least: int) -> Tensor:
    """Rows of more energy than the largest of p rows of pure noise; at least the `least` largest.

    The bound on a χ² of q degrees of freedom (Laurent, Massart 2000) at probability 1/p.
    """
    p, q = matrix.shape
    bound = noise * (q + 2 * math.sqrt(q * math.log(p + 1)) + 2 * math.log(p + 1))
    energy = (matrix**2).sum(1)
    count = max(int((energy > bound).sum()), least)
    return energy.topk(count).indices.sort().values
