"""What the estimators of low-rank tensor regression share: parameters, fitting and predicting."""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from bozzetto.regress.checks import (
    check_covariates,
    check_data,
    check_enough,
    check_groups,
    check_settings,
    full_ranks,
)
from bozzetto.regress.designs import RankOne, inner
from bozzetto.regress.moments import Moments
from bozzetto.regress.refine import Fit, Settings, first_pass, refine, start
from bozzetto.regress.selection import Criterion, choose_ranks, inner_of_mean
from bozzetto.regress.sources import Arrays, Batches, Source, blocks_of
from bozzetto.tensors import Tucker

__all__ = ["Ranks", "TensorRegressor"]

Ranks = int | Sequence[int] | Criterion


class TensorRegressor(RegressorMixin, BaseEstimator):
    """Least squares over tensors A of low multilinear rank, in y = c + ⟨X, A⟩ + ε.

    Which responses are taken is the subclass's `_scalar`.
    """

    _scalar: bool

    def __init__(
        self,
        ranks: Ranks = 1,
        *,
        shape: Sequence[int] | None = None,
        n_iter: int = 20,
        tol: float = 1e-2,
        alpha: float = 0.0,
        shrinkage: float = 0.01,
        fit_intercept: bool = True,
        max_rank: int = 4,
        cv: Any = 5,
        warm_start: bool = False,
    ) -> None:
        self.ranks = ranks
        self.shape = shape
        self.n_iter = n_iter
        self.tol = tol
        self.alpha = alpha
        self.shrinkage = shrinkage
        self.fit_intercept = fit_intercept
        self.max_rank = max_rank
        self.cv = cv
        self.warm_start = warm_start

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Self:
        """Estimate from arrays (memory-mapped ones are read block by block).

        Args:
            X: (n, p₁, …, p_d), a matrix of flattened tensors if `shape` is given, or `RankOne`.
            y: (n,).
            sample_weight: (n,) ≥ 0. An information criterion ("bic", or the one that chooses rows)
                takes their sum for the number of observations.
            groups: labels (n,): when ranks are chosen by "cv", observations of one label are held
                out together.

        Raises:
            ValueError: for data that is not finite or of the wrong shape, for ranks that no tensor
                of the shape has, and, unless alpha > 0, for fewer observations than unknowns.
        """
        settings = self._settings()
        x, y, weight = check_data(self, X, y, sample_weight, shape=self.shape, scalar=self._scalar)
        return self._fit(Arrays(x, y, weight, check_groups(groups, len(y))), settings)

    def fit_batches(self, batches: Iterable[Any] | Source) -> Self:
        """Estimate from observations that are never held: n_iter + 2 readings at most.

        Memory: about six tensors of A's shape in float64, one batch, and (unknowns)².

        Args:
            batches: an iterable that can be read several times, of (x, y) or (x, y, weight) with x
                an array (b, p₁, …) or `RankOne`; or a `Source`, such as `DaskShards`.

        Raises:
            TypeError: for a generator or another iterator that can be read only once.
            ValueError: as in `fit`, and for batches of different shapes.
        """
        source = batches if isinstance(batches, Source) else Batches(batches)
        self._fit(source, self._settings())
        self.n_features_in_ = self.shape_[0] if self.shape is None else math.prod(self.shape)
        return self

    def _settings(self) -> Settings:
        check_settings(self.n_iter, self.tol, self.alpha, self.shrinkage)
        return Settings(self.n_iter, self.tol, self.alpha, self.shrinkage, self.fit_intercept)

    def _fit(self, source: Source, settings: Settings) -> Self:
        vars(self).pop("_online", None)  # of an earlier partial_fit
        moments = first_pass(source, settings)
        if self.shape is not None and moments.mean_x.shape != tuple(self.shape):
            raise ValueError(
                f"covariates of shape {tuple(self.shape)} are needed; "
                f"got {tuple(moments.mean_x.shape)}"
            )
        return self._keep(self._estimate(source, moments, settings), moments)

    def _estimate(self, source: Source, moments: Moments, settings: Settings) -> Fit:
        if not isinstance(self.ranks, str):
            ranks = full_ranks(self.ranks, moments.cross.shape)
        else:
            fit, most = partial(self._estimate_at, settings=settings), self.max_rank
            ranks = choose_ranks(self.ranks, source, moments, fit, settings, most=most, cv=self.cv)
        before = self._before(tuple(moments.cross.shape), ranks)
        return self._estimate_at(source, moments, ranks, settings, before)

    def _estimate_at(
        self,
        source: Source,
        moments: Moments,
        ranks: tuple[int, ...],
        settings: Settings,
        first: Tucker | None = None,
    ) -> Fit:
        if settings.ridge == 0:
            check_enough(moments.count, moments.cross.shape, moments.mean_x.ndim, ranks)
        if first is None:
            first = start(moments, ranks, settings.shrinkage)
        return refine(source, moments.square, first, settings)

    def _before(self, shape: tuple[int, ...], ranks: tuple[int, ...]) -> Tucker | None:
        """The last estimate, if a warm start asks for it and it has the shape and the ranks."""
        if not (self.warm_start and hasattr(self, "core_")):
            return None
        before = self._tucker()
        return before if (before.shape, before.ranks) == (shape, ranks) else None

    def _keep(self, fit: Fit, moments: Moments) -> Self:
        self.core_ = fit.tucker.core.numpy()
        self.factors_ = tuple(factor.numpy() for factor in fit.tucker.factors)
        self.shape_ = tuple(moments.mean_x.shape)
        self.ranks_ = fit.tucker.ranks
        self.objectives_ = np.array(fit.history)
        self.n_iter_ = len(fit.history) - 1
        constant = (moments.mean_y - inner_of_mean(moments, fit.tucker)).numpy()
        self.intercept_ = float(constant) if constant.ndim == 0 else constant
        self._step = fit.step
        self._noise = (fit.residual, moments.count)
        return self

    def _tucker(self) -> Tucker:
        factors = tuple(torch.from_numpy(factor) for factor in self.factors_)
        return Tucker(torch.from_numpy(self.core_), factors)

    @property
    def coef_(self) -> np.ndarray:
        """A in full, computed from its Tucker form at every call."""
        return self._tucker().full().numpy()

    def _covariates(self, X: Any) -> np.ndarray | RankOne:
        check_is_fitted(self)
        x = check_covariates(self, X, self.shape, reset=False)
        if (x.shape if isinstance(x, RankOne) else x.shape[1:]) != self.shape_:
            raise ValueError(f"covariates of shape {self.shape_} are needed; got X of {x.shape}")
        return x

    def predict(self, X: Any) -> np.ndarray:
        """C + ⟨X, A⟩: (n,)."""
        x, tucker = self._covariates(X), self._tucker()
        blocks = blocks_of(x, np.empty(len(x)), np.ones(len(x)))
        return torch.cat([inner(block.x, tucker) for block in blocks]).numpy() + self.intercept_

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags
