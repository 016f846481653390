"""Sparse regression: rows in use are found, and the error is that of knowing them."""

import numpy as np
import pytest
import torch
from planted import Planted, planted, random_tucker

from bozzetto.regress import ISLETRegressor, SparseISLETRegressor
from bozzetto.regress.lasso import group_lasso
from bozzetto.regress.sketched import LeastSquares
from bozzetto.tensors import Tucker


def sparse_data(n: int, noise: float, seed: int) -> tuple[Planted, Planted, list[np.ndarray]]:
    """Modes 0 and 1 use 5 of 20 rows. Also the data seen at those rows, and the rows."""
    rng = np.random.default_rng(seed)
    small = random_tucker((5, 5, 8), (2, 2, 2), seed)
    rows = [np.sort(rng.choice(20, 5, replace=False)) for _ in range(2)]
    factors = [torch.zeros(20, 2).double() for _ in range(2)]
    for factor, r, part in zip(factors, rows, small.factors, strict=False):
        factor[torch.from_numpy(r)] = part
    truth = Tucker(small.core, (*factors, small.factors[2]))
    x = rng.standard_normal((n, 20, 20, 8))
    y = np.tensordot(x, truth.full().numpy(), 3) + noise * rng.standard_normal(n)
    seen = x[np.ix_(range(n), *rows)]
    return Planted(x, y, truth, noise), Planted(seen, y, small, noise), rows


def test_rows_are_found_and_the_error_is_that_of_knowing_them():
    for seed in range(3):
        data, seen, rows = sparse_data(600, 0.1, seed)
        model = SparseISLETRegressor(2, sparse_modes=[0, -2]).fit(data.x, data.y)
        assert [list(found) for found in model.support_] == [*map(list, rows), list(range(8))]
        assert data.error(model.coef_) <= 1.1 * seen.oracle()
        assert data.error(model.coef_) < data.error(ISLETRegressor(2).fit(data.x, data.y).coef_)


def test_rows_out_of_use_are_exactly_zero():
    data, _, rows = sparse_data(600, 0.1, 0)
    coef = SparseISLETRegressor(2, sparse_modes=[0, 1]).fit(data.x, data.y).coef_
    assert (np.delete(coef, rows[0], axis=0) == 0).all()


def test_covariates_that_say_nothing_are_dropped_from_a_vector():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 40))
    y = x[:, [3, 17]] @ [1.0, -2.0] + 0.3 * rng.standard_normal(200)
    assert list(SparseISLETRegressor().fit(x, y).support_[0]) == [3, 17]


def test_the_group_lasso_meets_its_optimality_conditions():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(100, 1, 12, generator=g).double()
    y = torch.randn(100, 1, 1, generator=g).double() + x[:, :, :2].sum(2, keepdim=True)
    sums, penalty = LeastSquares.of(x, y, torch.ones(100).double()), 30.0
    theta = group_lasso(sums, 4, penalty, torch.zeros(4, 3).double())
    slope = (sums.moment - sums.gram @ theta.reshape(-1, 1)).reshape(4, 3)
    for row, gradient in zip(theta, slope, strict=True):
        if row.norm() > 0:
            torch.testing.assert_close(gradient, penalty * row / row.norm(), rtol=1e-2, atol=0.1)
        else:
            assert gradient.norm() <= penalty * (1 + 1e-6)
    assert 0 < int((theta.norm(dim=1) > 0).sum()) < 4


@pytest.mark.parametrize("criterion", ["gap", "bic", "cv"])
def test_ranks_are_found_together_with_the_rows(criterion):
    data, _, rows = sparse_data(600, 0.05, 0)
    model = SparseISLETRegressor(criterion, sparse_modes=[0, 1], max_rank=3).fit(data.x, data.y)
    assert model.ranks_ == (2, 2, 2)
    assert [list(found) for found in model.support_[:2]] == list(map(list, rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"ranks": "aic"}, "one of"), ({"sparse_modes": [3]}, "modes of 3"), ({"ranks": 9}, "size")],
)
def test_impossible_parameters_are_refused(change, message):
    data = planted((6, 5, 4), (2, 2, 2), 200, 0.1)
    with pytest.raises(ValueError, match=message):
        SparseISLETRegressor(2).set_params(**change).fit(data.x, data.y)


def test_too_few_observations_for_the_rows_are_refused():
    data = planted((6, 5, 4), (2, 2, 2), 12, 0.1)
    with pytest.raises(ValueError, match="need at least"):
        SparseISLETRegressor(2).fit(data.x, data.y)
