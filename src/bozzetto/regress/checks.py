"""What an estimator is given, checked where it enters: covariates, responses, weights, ranks."""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.utils.validation import (
    _check_sample_weight,  # pyright: ignore[reportPrivateUsage]
    check_array,
    check_consistent_length,
    column_or_1d,
    validate_data,
)

from bozzetto.regress.designs import RankOne
from bozzetto.regress.refine import samples_needed
from bozzetto.tensors import check_ranks

__all__ = [
    "TooFewObservations",
    "check_covariates",
    "check_data",
    "check_enough",
    "check_groups",
    "check_settings",
    "full_ranks",
]

FLOATS = [np.float64, np.float32]


class TooFewObservations(ValueError):
    """The observations do not determine a tensor of these ranks; says how many would."""


def check_settings(n_iter: int, tol: float, alpha: float, shrinkage: float) -> None:
    """Raise unless the numbers of an estimator make sense.

    Raises:
        ValueError: naming the number.
    """
    if n_iter < 0:
        raise ValueError(f"n_iter counts refinements and must be at least 0; got {n_iter}")
    if tol < 0 or alpha < 0:
        raise ValueError(f"tol and alpha must not be negative; got tol={tol}, alpha={alpha}")
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage must be between 0 and 1; got {shrinkage}")


def check_covariates(
    estimator: Any, x: Any, shape: Sequence[int] | None, *, reset: bool
) -> np.ndarray | RankOne:
    """Covariates as floats (n, p₁, …), a matrix of flattened tensors brought to `shape`.

    Raises:
        ValueError: if they are not finite or have another shape.
    """
    if isinstance(x, RankOne):
        if not all(bool(factor.isfinite().all()) for factor in x.factors):
            raise ValueError("covariates must be finite; a rank-one factor has NaN or infinity")
        if reset:
            estimator.n_features_in_ = x.shape[0]
        return x
    if shape is not None and np.shape(x)[1:] == tuple(shape):
        x = np.reshape(x, (len(x), -1))  # the same number of features in either form
    x = validate_data(estimator, x, reset=reset, allow_nd=True, dtype=FLOATS)
    if shape is None:
        return x
    if x.ndim != 2 or x.shape[1] != math.prod(shape):
        raise ValueError(
            f"covariates of shape {tuple(shape)} or flattened ones are needed; got X of shape "
            f"{x.shape}"
        )
    return x.reshape(len(x), *shape)


def check_data(
    estimator: Any,
    x: Any,
    y: Any,
    weight: Any,
    *,
    shape: Sequence[int] | None,
    scalar: bool = True,
    reset: bool = True,
) -> tuple[np.ndarray | RankOne, np.ndarray, np.ndarray]:
    """Covariates (n, p₁, …), responses float64 (n,) or (n, q₁, …) and weights (n,).

    Raises:
        ValueError: if they are missing, not finite or of different lengths.
    """
    if y is None:
        raise ValueError(
            f"{type(estimator).__name__} requires y to be passed, but the target y is None"
        )
    x = check_covariates(estimator, x, shape, reset=reset)
    y = check_array(y, ensure_2d=False, allow_nd=True, dtype="float64", input_name="y")
    y = column_or_1d(y, warn=True) if scalar else y
    check_consistent_length(y, np.empty(len(x)))
    rows = np.empty((len(y), 1))
    return x, y, _check_sample_weight(weight, rows, dtype=np.float64, ensure_non_negative=True)


def check_groups(groups: Any, count: int) -> np.ndarray | None:
    """Labels (n,), if there are any.

    Raises:
        ValueError: if there is not one for every observation.
    """
    if groups is None:
        return None
    labels = column_or_1d(groups)
    if len(labels) != count:
        raise ValueError(f"one group an observation is needed, {count}; got {len(labels)}")
    return labels


def full_ranks(ranks: int | Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """One rank a mode, from one for all or from one each.

    Raises:
        ValueError: if they are no integers, or a tensor of that shape cannot have them.
    """
    if isinstance(ranks, Integral):
        ranks = [int(ranks)] * len(shape)
    if not np.iterable(ranks) or not all(isinstance(r, Integral) for r in ranks):
        raise ValueError(f"ranks are an integer, one integer a mode, or a criterion; got {ranks!r}")
    every = tuple(int(r) for r in ranks)
    check_ranks(shape, every)
    return every


def check_enough(count: int, shape: Sequence[int], order: int, ranks: Sequence[int]) -> None:
    """Raise unless there are as many observations as unknowns, with the intercept.

    `order` of the modes are the covariates', the others the response's.

    Raises:
        TooFewObservations: saying how many are needed.
    """
    needed = samples_needed(shape, order, ranks)
    if count < needed:
        raise TooFewObservations(
            f"ranks {tuple(ranks)} of a tensor {tuple(shape)} need at least {needed} observations "
            f"of positive weight, or alpha > 0; got n_samples={count}"
        )
