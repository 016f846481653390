"""Kernel regression: scikit-learn's own contract, leave-one-out by brute force, and digits."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from bozzetto.tangent.regressor import NTKClassifier, NTKRegressor


@parametrize_with_checks([NTKRegressor(), NTKClassifier(depth=1, activation="erf")])
def test_scikit_learns_contract(estimator, check):
    check(estimator)


def test_leave_one_out_is_what_leaving_one_out_gives():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((25, 3)), rng.standard_normal(25)
    model = NTKRegressor(ridges=(0.03,)).fit(x, y)
    gram = model._kernel(x)
    scale, errors = 0.03 * np.trace(gram) / 25, []
    for i in range(25):
        rest = np.delete(np.arange(25), i)
        system = gram[np.ix_(rest, rest)] + scale * np.eye(24)
        dual = np.linalg.solve(system, y[rest] - y.mean())
        errors.append((y[i] - y.mean() - gram[i, rest] @ dual) ** 2)
    np.testing.assert_allclose(model.loo_errors_[0], np.mean(errors), rtol=1e-9)


def test_digits_are_classified_better_than_by_a_linear_model():
    x, y = load_digits(return_X_y=True)
    a, b, ya, yb = train_test_split(x / 8 - 1, y, train_size=500, random_state=0)
    for kernel in ("ntk", "nngp"):
        assert NTKClassifier(kernel=kernel).fit(a, ya).score(b, yb) > 0.96
    linear = LogisticRegression(max_iter=2000).fit(a, ya).score(b, yb)
    assert NTKClassifier().fit(a, ya).score(b, yb) > linear


def test_diabetes_is_regressed_as_well_as_by_a_linear_model():
    x, y = load_diabetes(return_X_y=True)
    a, b, ya, yb = train_test_split(x, y, random_state=0)
    ours = make_pipeline(StandardScaler(), NTKRegressor()).fit(a, ya).score(b, yb)
    assert ours > RidgeCV(np.logspace(-4, 2, 13)).fit(a, ya).score(b, yb) - 0.03


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"activation": "step"}, "activation is one of"),
        ({"kernel": "rbf"}, "'ntk' or 'nngp'"),
        ({"depth": 0}, "at least 1"),
        ({"ridges": (0.0,)}, "ridges are positive"),
        ({"variance": 0.0}, "variance must be > 0"),
        ({"bias": -1.0}, "bias >= 0"),
    ],
)
def test_wrong_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        NTKRegressor(**parameters).fit(np.eye(3), np.arange(3.0))
