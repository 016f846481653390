"""The estimators keep scikit-learn's conventions: all of its own checks."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from bozzetto.regress import ISLETMultiRegressor, ISLETRegressor, SparseISLETRegressor


@parametrize_with_checks([ISLETRegressor(), ISLETMultiRegressor(), SparseISLETRegressor()])
def test_scikit_learn_checks_pass(estimator, check):
    check(estimator)
