"""The estimators against the least squares that knows the directions, and on bad input."""

import numpy as np
import pytest
import torch
from planted import planted
from sklearn.base import clone
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import LeaveOneGroupOut

from bozzetto.regress import ISLETMultiRegressor, ISLETRegressor, RankOne
from bozzetto.regress.sources import Arrays

RANKS = (2, 2, 2)


@pytest.fixture(scope="module")
def data():
    return planted((10, 9, 8), RANKS, 600, 0.3)


@pytest.mark.parametrize(
    ("shape", "ranks", "n", "noise"),
    [
        ((20, 20, 20), (3, 3, 3), 1200, 0.01),
        ((20, 20, 20), (3, 3, 3), 1500, 0.3),
        ((30, 20), (2, 2), 600, 0.2),
        ((7, 6, 5, 4), (2, 2, 2, 2), 500, 0.3),
        ((12, 12, 12), (1, 1, 1), 300, 0.3),
        ((12, 11, 10), (2, 3, 4), 900, 0.2),
    ],
    ids=str,
)
def test_the_error_is_within_a_tenth_of_the_oracles(shape, ranks, n, noise):
    found, floor = [], []
    for seed in range(3):
        data = planted(shape, ranks, n, noise, seed=seed)
        found.append(data.error(ISLETRegressor(ranks).fit(data.x, data.y).coef_))
        floor.append(data.oracle())
    assert np.mean(found) <= 1.1 * np.mean(floor)


def test_one_refinement_reaches_what_the_literal_algorithm_does_not():
    data = planted((20, 20, 20), (3, 3, 3), 1200, 0.01)
    literal, refined = (
        data.error(ISLETRegressor((3, 3, 3), n_iter=n).fit(data.x, data.y).coef_) for n in (0, 1)
    )
    assert literal > 5 * data.oracle()
    assert refined < 1.5 * data.oracle()


def test_without_noise_the_tensor_is_recovered():
    data = planted((10, 9, 8), RANKS, 600, 0.0)
    model = ISLETRegressor(RANKS, n_iter=50).fit(data.x, data.y)
    np.testing.assert_allclose(model.coef_, data.truth.full(), atol=1e-8)
    assert model.intercept_ == pytest.approx(2.0)


def test_whitened_modes_help_correlated_covariates():
    errors = {0.01: [], 1.0: []}
    for seed in range(3):
        data = planted((15, 15, 15), RANKS, 1000, 0.1, seed=seed, correlation=0.8)
        for shrinkage, found in errors.items():
            model = ISLETRegressor(RANKS, n_iter=0, shrinkage=shrinkage).fit(data.x, data.y)
            found.append(data.error(model.coef_))
    assert np.mean(errors[0.01]) < 0.5 * np.mean(errors[1.0])


@pytest.mark.parametrize("response", [1, 2])
def test_tensor_responses_reach_the_oracle(response):
    shape, ranks = (8, 7, 6, 5), (2, 2, 3, 2)
    data = planted(shape, ranks, 300, 0.3, response=response)
    model = ISLETMultiRegressor(ranks).fit(data.x, data.y)
    assert data.error(model.coef_) <= 1.1 * data.oracle()
    predicted = np.tensordot(data.x, model.coef_, 4 - response) + model.intercept_
    np.testing.assert_allclose(model.predict(data.x), predicted)
    assert np.shape(model.intercept_) == shape[4 - response :]


def test_a_vector_response_is_reduced_rank_regression():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 6))
    y = x @ rng.standard_normal((6, 4)) + rng.standard_normal((200, 4))
    model = ISLETMultiRegressor((2, 2), n_iter=200, tol=0.0).fit(x, y)
    xc, yc = x - x.mean(0), y - y.mean(0)
    full = np.linalg.lstsq(xc, yc)[0]
    v = np.linalg.svd(xc @ full)[2][:2]  # Izenman 1975
    np.testing.assert_allclose(model.coef_, full @ v.T @ v, atol=1e-6)


def test_full_ranks_are_ordinary_and_ridge_regression():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 4, 3)) + 1, rng.standard_normal(60)
    weight, flat = rng.uniform(0.5, 2, 60), x.reshape(60, -1)
    model = ISLETRegressor((3, 3)).set_params(ranks=(3, 3))
    with pytest.raises(ValueError, match="size 3"):
        clone(model).set_params(ranks=(4, 4)).fit(x, y)
    for intercept in (True, False):
        ours = ISLETRegressor(1, alpha=2.0, fit_intercept=intercept).fit(flat, y, weight)
        ridge = Ridge(2.0, fit_intercept=intercept).fit(flat, y, weight)
        np.testing.assert_allclose(ours.coef_, ridge.coef_, atol=1e-8)
        assert ours.intercept_ == pytest.approx(ridge.intercept_)
    x3 = x[:, :3]
    least = LinearRegression().fit(x3.reshape(60, -1), y, weight)
    np.testing.assert_allclose(
        ISLETRegressor((3, 3)).fit(x3, y, weight).coef_.ravel(), least.coef_, atol=1e-8
    )


def test_weights_are_repetitions(data):
    weight = np.random.default_rng(0).integers(0, 3, len(data.y))
    weighted = ISLETRegressor(RANKS).fit(data.x, data.y, weight)
    x, y = np.repeat(data.x, weight, axis=0), np.repeat(data.y, weight)
    np.testing.assert_allclose(weighted.coef_, ISLETRegressor(RANKS).fit(x, y).coef_, atol=1e-9)


def test_flattened_tensors_and_every_numeric_type_give_one_estimate(data):
    x = np.round(20 * data.x)
    model = ISLETRegressor(RANKS).fit(x, data.y)
    flat = ISLETRegressor(RANKS, shape=(10, 9, 8)).fit(x.reshape(600, -1), data.y)
    np.testing.assert_allclose(flat.coef_, model.coef_)
    np.testing.assert_allclose(flat.predict(x.reshape(600, -1)), model.predict(x))
    for kind, tolerance in [(np.int16, 1e-12), (np.float32, 1e-5)]:
        other = ISLETRegressor(RANKS).fit(x.astype(kind), data.y)
        assert data.error(20 * other.coef_) == pytest.approx(data.error(20 * model.coef_), abs=1e-4)
        scale = np.abs(model.coef_).max()
        np.testing.assert_allclose(other.coef_, model.coef_, atol=tolerance * scale)


def test_the_tucker_form_is_the_coefficient(data):
    model = ISLETRegressor(RANKS).fit(data.x, data.y)
    full = np.einsum("abc,ia,jb,kc->ijk", model.core_, *model.factors_)
    np.testing.assert_allclose(model.coef_, full)
    assert model.ranks_ == RANKS
    assert model.shape_ == (10, 9, 8)
    assert len(model.objectives_) == model.n_iter_ + 1
    assert (np.diff(model.objectives_) <= 0).all()


def test_a_warm_start_begins_at_the_last_estimate(data):
    model = ISLETRegressor(RANKS, warm_start=True).fit(data.x, data.y)
    cold = model.objectives_
    warm = model.fit(data.x, data.y).objectives_
    assert warm[0] < 1.01 * cold[-1] < 0.5 * cold[0]


def test_a_warm_start_tells_the_folds_nothing_of_what_is_held_out():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((80, 6, 5, 4)), rng.standard_normal(80)  # nothing to be found
    warm = ISLETRegressor(RANKS, n_iter=0, warm_start=True).fit(x, y)
    assert warm.set_params(ranks="cv", max_rank=2).fit(x, y).ranks_ == (1, 1, 1)


def test_standard_errors_are_the_spread_of_the_estimate():
    entries = np.eye(6 * 5 * 4).reshape(-1, 6, 5, 4)
    scores = []
    for seed in range(40):
        data = planted((6, 5, 4), RANKS, 400, 0.3, seed=0)
        rng = np.random.default_rng(seed + 1)
        y = np.tensordot(data.x, data.truth.full().numpy(), 3) + 0.3 * rng.standard_normal(400)
        model = ISLETRegressor(RANKS).fit(data.x, y)
        gap = (model.coef_ - data.truth.full().numpy()).ravel()
        scores.append(gap / model.standard_errors(entries))
    # Mean of 40 × 120 squared scores; entries are dependent: at most 28 independent ones a draw.
    assert abs(np.square(scores).mean() - 1) < 5 * np.sqrt(2 / (40 * 28))


def test_standard_errors_need_no_ridge_and_spare_observations(data):
    model = ISLETRegressor(RANKS, alpha=1.0).fit(data.x, data.y)
    with pytest.raises(ValueError, match="alpha = 0"):
        model.standard_errors(data.x)


@pytest.mark.parametrize("criterion", ["gap", "bic", "cv"])
def test_ranks_are_found(criterion):
    data = planted((10, 9, 8), (2, 3, 2), 700, 0.03)
    model = ISLETRegressor(criterion, cv=3).fit(data.x, data.y)
    assert model.ranks_ == (2, 3, 2)


def test_cross_validation_chooses_ranks_for_short_samples_with_ridge():
    data = planted((10, 9, 8), RANKS, 45, 0.01)  # 54 unknowns at the true ranks
    model = ISLETRegressor("cv", alpha=1e-3, max_rank=2, cv=3).fit(data.x, data.y)
    alone = ISLETRegressor(model.ranks_, alpha=1e-3).fit(data.x, data.y)
    np.testing.assert_allclose(model.coef_, alone.coef_)
    assert ISLETRegressor("gap", alpha=1e-3).fit(data.x, data.y).n_iter_ > 0
    with pytest.raises(ValueError, match=r'"bic" needs more observations than the 25 unknowns'):
        ISLETRegressor("bic", alpha=1e-3).fit(data.x[:20], data.y[:20])


def test_whole_groups_are_held_out_when_ranks_are_chosen(data):
    groups = np.repeat(["a", "b", "c"], 200)
    source = Arrays(data.x, data.y, np.ones(600), groups)
    for cv in (LeaveOneGroupOut(), 5):  # a number above that of the groups means all of them
        held = [set(groups[part.weight > 0]) for _, part in source.folds(cv)]
        kept = [set(groups[part.weight > 0]) for part, _ in source.folds(cv)]
        assert sorted(map(sorted, held)) == [["a"], ["b"], ["c"]]
        assert all(not a & b for a, b in zip(held, kept, strict=True))
    assert ISLETRegressor("cv").fit(data.x, data.y, groups=groups).ranks_ == RANKS
    with pytest.raises(ValueError, match="one group an observation is needed, 600; got 599"):
        ISLETRegressor("cv").fit(data.x, data.y, groups=groups[:-1])


def test_too_few_observations_for_any_rank_are_refused(data):
    few = slice(20)  # 26 are needed for ranks of one
    for criterion in ("gap", "bic", "cv"):
        with pytest.raises(ValueError, match=r"need at least 26 observations"):
            ISLETRegressor(criterion, cv=2).fit(data.x[few], data.y[few])


def test_an_unknown_criterion_is_refused(data):
    with pytest.raises(ValueError, match='"bic", "cv", "gap"'):
        ISLETRegressor("aic").fit(data.x, data.y)


def test_too_few_observations_are_refused_with_the_number_needed(data):
    # 2·2·2 + (8 + 7 + 6)·2 unknowns and an intercept
    with pytest.raises(ValueError, match=r"at least 51 observations.*n_samples=40"):
        ISLETRegressor(RANKS).fit(data.x[:40], data.y[:40])
    ISLETRegressor(RANKS).fit(data.x[:51], data.y[:51])
    assert np.isfinite(ISLETRegressor(RANKS, alpha=1.0).fit(data.x[:40], data.y[:40]).coef_).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranks": (11, 2, 2)}, "size 10"),
        ({"ranks": (2, 2)}, "one rank a mode"),
        ({"n_iter": -1}, "n_iter"),
        ({"alpha": -1.0}, "alpha"),
        ({"shrinkage": 2.0}, "shrinkage"),
        ({"shape": (5, 5)}, "shape"),
    ],
)
def test_impossible_parameters_are_refused(data, change, message):
    with pytest.raises(ValueError, match=message):
        ISLETRegressor(RANKS).set_params(**change).fit(data.x, data.y)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(data, value):
    x, y = data.x.copy(), data.y.copy()
    x[3, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        ISLETRegressor(RANKS).fit(x, y)
    y[0] = value
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        ISLETRegressor(RANKS).fit(data.x, y)


def test_covariates_of_another_shape_are_refused_in_predict(data):
    model = ISLETRegressor(RANKS).fit(data.x, data.y)
    with pytest.raises(ValueError, match="are needed; got X of"):
        model.predict(data.x[:, :, :5])


def test_constant_and_repeated_covariates_give_a_finite_estimate_that_predicts(data):
    x = data.x.copy()
    x[:, 0] = 7.0  # a constant slice
    x[:, 2] = x[:, 1]  # two equal slices
    y = np.tensordot(x, data.truth.full().numpy(), 3)
    model = ISLETRegressor(RANKS, n_iter=50).fit(x, y)
    assert np.isfinite(model.coef_).all()
    assert model.score(x, y) > 0.999


def test_rank_one_covariates_are_never_formed_and_give_the_same_estimate():
    rng = np.random.default_rng(0)
    factors = [rng.standard_normal((500, p)) for p in (7, 6, 5)]
    x = np.einsum("bi,bj,bk->bijk", *factors)
    truth = planted((7, 6, 5), RANKS, 1, 0.0).truth.full().numpy()
    y = np.tensordot(x, truth, 3) + 0.1 * rng.standard_normal(500)
    model = ISLETRegressor(RANKS).fit(x, y)
    held = RankOne.of(*factors)
    other = ISLETRegressor(RANKS).fit(held, y)
    np.testing.assert_allclose(other.coef_, model.coef_, atol=1e-10)
    np.testing.assert_allclose(other.predict(held), model.predict(x), atol=1e-10)


def test_integer_factors_become_floats_and_bad_ones_are_refused():
    rng = np.random.default_rng(0)
    signs = [2 * rng.integers(0, 2, (300, p)) - 1 for p in (6, 5, 4)]
    y = rng.standard_normal(300)
    whole = ISLETRegressor(RANKS).fit(RankOne.of(*signs), y)
    dense = ISLETRegressor(RANKS).fit(np.einsum("bi,bj,bk->bijk", *signs), y)
    np.testing.assert_allclose(whole.coef_, dense.coef_, atol=1e-10)
    with pytest.raises(ValueError, match="must be floats"):
        RankOne((torch.ones(3, 2, dtype=torch.int64),))
    with pytest.raises(ValueError, match="finite"):
        ISLETRegressor(1).fit(RankOne.of(np.full((9, 2), np.nan), np.ones((9, 3))), np.ones(9))


def test_flattened_tensors_and_whole_ones_are_the_same_data():
    case = planted((4, 5), (1, 1), 60, 0.1)
    flat = case.x.reshape(60, -1)
    whole = ISLETRegressor(1, shape=(4, 5)).fit(case.x, case.y)
    matrix = ISLETRegressor(1, shape=(4, 5)).fit(flat, case.y)
    batches = ISLETRegressor(1, shape=(4, 5)).fit_batches([(case.x, case.y)])
    for model in (whole, matrix, batches):
        assert model.n_features_in_ == 20
        for x in (case.x, flat):
            np.testing.assert_allclose(model.predict(x), whole.predict(case.x))
    with pytest.raises(ValueError, match=r"covariates of shape \(4, 5\) are needed; got \(20,\)"):
        ISLETRegressor(1, shape=(4, 5)).fit_batches([(flat, case.y)])


def test_ranks_may_be_integers_of_numpy_and_nothing_else():
    case = planted((4, 5), (1, 1), 60, 0.1)
    for ranks in (np.int64(1), np.array([1, 1])):
        assert ISLETRegressor(ranks).fit(case.x, case.y).ranks_ == (1, 1)
    for ranks in (1.5, (1.0, 1.0), None):
        with pytest.raises(ValueError, match="ranks are an integer"):
            ISLETRegressor(ranks).fit(case.x, case.y)


@pytest.mark.parametrize("constant", [0.1, 1e6 / 3])
def test_constant_covariates_explain_nothing(constant):
    y = np.random.default_rng(0).standard_normal(60)
    x = np.full((60, 4, 4), constant)
    model = ISLETRegressor(1).fit(x, y)
    assert not model.coef_.any()
    np.testing.assert_allclose(model.predict(x), y.mean(), atol=1e-12)
