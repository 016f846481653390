"""ISLET against ridge on real data: fluorescence of oils, EEG, COVID serology."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.model_selection import (
    LeaveOneGroupOut,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from bozzetto.regress import ISLETRegressor

Row = dict[str, Any]
Splits = list[tuple[np.ndarray, np.ndarray]]
Score = Callable[[np.ndarray, np.ndarray], float]
DATA = Path(__file__).resolve().parents[1] / "../shared/data/tensor"


def ridge(alpha: float) -> BaseEstimator:
    flatten = FunctionTransformer(lambda x: x.reshape(len(x), -1))
    return make_pipeline(flatten, Ridge(alpha))


def candidates(entries: int) -> dict[str, list[BaseEstimator]]:
    """Both methods with the same penalties, from none to one that leaves nothing of the estimate.

    Covariates have standard deviation 1, so that their squared norm is about `entries`.
    """
    alphas = [entries * 10.0**k for k in range(-4, 2)]
    ranked = [(r, alpha) for r in (1, 2, 3) for alpha in alphas]
    return {
        "ridge": [ridge(alpha) for alpha in alphas],
        "ISLET": [ISLETRegressor(r, alpha=alpha, shrinkage=1.0) for r, alpha in ranked],
    }


def chosen(
    options: list[BaseEstimator], x: np.ndarray, y: np.ndarray, inner: Splits
) -> BaseEstimator:
    """The option of the lowest mean squared error over the inner splits, fitted to all of x."""
    losses = [
        -cross_val_score(option, x, y, cv=inner, scoring="neg_mean_squared_error").mean()
        for option in options
    ]
    return clone(options[int(np.argmin(losses))]).fit(x, y)


def held_out(
    x: np.ndarray,
    y: np.ndarray,
    outer: Splits,
    inner: Callable[[np.ndarray], Splits],
    score: Score,
) -> dict[str, Row]:
    """Held-out scores of each method: of the option chosen in the training rows, and hindsight."""
    found: dict[str, Row] = {}
    for name, options in candidates(x[0].size).items():
        predicted = np.zeros(len(y))
        for train, test in outer:
            model = chosen(options, x[train], y[train], inner(train))
            predicted[test] = model.predict(x[test])
        each = [score(y, cross_val_predict(option, x, y, cv=outer)) for option in options]
        found[name] = {"chosen": score(y, predicted), "best_in_hindsight": max(each)}
    return found


def by_series(y: np.ndarray, series: np.ndarray) -> Splits:
    return list(LeaveOneGroupOut().split(y, y, series))


def shuffled(x: np.ndarray, y: np.ndarray, score: Score) -> dict[str, Row]:
    """Means over three divisions into five stratified parts; five parts inside for choosing."""
    runs = []
    for seed in range(3):
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        outer = list(folds.split(x, y))
        inner = lambda train, folds=folds: list(folds.split(x[train], y[train]))  # noqa: E731
        runs.append(held_out(x, y, outer, inner, score))
    return {
        name: {key: float(np.mean([run[name][key] for run in runs])) for key in runs[0][name]}
        for name in runs[0]
    }


def real() -> Row:
    """Held-out scores on real data, every parameter chosen inside the training part.

    EEM, fluorescence of oils (80 × 501 × 13): R² of a concentration, a whole series left out at a
    time. EEG (61 × 64 × 64): area under the curve of two groups. COVID serology (438 × 6 × 11):
    R² of the severity, 0 negative to 4 deceased; it comes with tensorly: pip install tensorly.
    """
    try:
        from tensorly.datasets import load_covid19_serology
    except ImportError as error:
        raise ImportError("this benchmark needs tensorly: pip install tensorly") from error

    eem, eeg, covid = (
        np.load(DATA / "eem_olive.npz"),
        np.load(DATA / "eeg_alcohol.npz"),
        load_covid19_serology(),
    )
    series = np.array([name[0] for name in eem["names"]])
    grades = ["Negative", "Mild", "Moderate", "Severe", "Deceased"]
    severity = np.array([float(grades.index(grade)) for grade in covid["ticks"][0]])
    x, y = unit(eem["x"]), eem["y"]
    inner = lambda train: by_series(y[train], series[train])  # noqa: E731
    found = {
        "EEM": held_out(x, y, by_series(y, series), inner, r2_score),
        "EEG": shuffled(unit(eeg["x"]), eeg["y"].astype(float), roc_auc_score),
        "COVID": shuffled(unit(covid["tensor"]), severity, r2_score),
    }
    rows = [
        {"data": data, "method": method} | scores
        for data, methods in found.items()
        for method, scores in methods.items()
    ]
    return {"rows": rows, "seeds_of_the_divisions": [0, 1, 2]}


def unit(x: np.ndarray) -> np.ndarray:
    """In units of the standard deviation of all entries."""
    return x / x.astype(float).std()


BENCHMARKS: dict[str, Callable[[], Row]] = {"islet-real": real}
