"""Tensor algebra against einsum, dense SVD and the theory of truncated Tucker forms."""

import pytest
import torch

from bozzetto.tensors import (
    Tucker,
    fold,
    hooi,
    hosvd,
    leading,
    mode_product,
    multi_product,
    st_hosvd,
    unfold,
)

SHAPE = (4, 5, 6)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def oblique() -> Tucker:
    """Ranks (2, 3, 2) and factors that are not orthonormal."""
    return Tucker(draw(2, 3, 2), (draw(4, 2), draw(5, 3), draw(6, 2)))


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_unfolding_lists_the_fibres_in_order_and_folding_undoes_it(mode):
    x = draw(*SHAPE)
    matrix = unfold(x, mode)
    rest = [size for k, size in enumerate(SHAPE) if k != mode]
    expected = torch.stack([x.select(mode, i).flatten() for i in range(SHAPE[mode])])
    torch.testing.assert_close(matrix, expected)
    assert matrix.shape == (SHAPE[mode], rest[0] * rest[1])
    torch.testing.assert_close(fold(matrix, mode, SHAPE), x)


def test_a_vector_unfolds_to_a_column():
    assert unfold(draw(7), 0).shape == (7, 1)


@pytest.mark.parametrize(
    ("mode", "formula"), [(0, "qa,abc->qbc"), (1, "qb,abc->aqc"), (2, "qc,abc->abq")]
)
def test_a_mode_product_is_the_einsum(mode, formula):
    x, matrix = draw(*SHAPE), draw(3, SHAPE[mode], seed=1)
    expected = torch.einsum(formula, matrix, x)
    torch.testing.assert_close(mode_product(x, matrix, mode), expected)
    torch.testing.assert_close(mode_product(x, matrix, mode - 3), expected)


def test_many_products_commute_with_their_order_and_skip_none():
    x, a, c = draw(*SHAPE), draw(2, 4, seed=1), draw(3, 6, seed=2)
    expected = torch.einsum("pa,rc,abc->pbr", a, c, x)
    torch.testing.assert_close(multi_product(x, [a, None, c]), expected)
    torch.testing.assert_close(multi_product(x[None], [a, None, c], first=1)[0], expected)


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (6, 6)])
def test_leading_directions_are_those_of_the_dense_svd(shape):
    x = draw(*shape)
    u = torch.linalg.svd(x, full_matrices=False)[0][:, :3]
    basis = leading(x, 3)
    torch.testing.assert_close(basis.T @ basis, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(basis @ basis.T, u @ u.T)


@pytest.mark.parametrize("method", [hosvd, st_hosvd, hooi])
def test_a_tensor_of_the_ranks_is_recovered(method):
    x = multi_product(
        draw(2, 3, 2), [draw(p, r, seed=p) for p, r in zip(SHAPE, (2, 3, 2), strict=True)]
    )
    tucker = method(x, (2, 3, 2))
    torch.testing.assert_close(tucker.full(), x)
    assert tucker.ranks == (2, 3, 2)
    assert tucker.shape == SHAPE
    for factor in tucker.factors:
        torch.testing.assert_close(factor.T @ factor, torch.eye(factor.shape[1]).double())


@pytest.mark.parametrize("method", [hosvd, st_hosvd, hooi])
def test_the_squared_error_is_at_most_the_dropped_singular_values(method):
    x, ranks = draw(*SHAPE), (2, 3, 2)
    dropped = [torch.linalg.svdvals(unfold(x, k))[r:].square().sum() for k, r in enumerate(ranks)]
    error = (method(x, ranks).full() - x).square().sum()
    assert max(dropped) <= error <= sum(dropped)


def test_hooi_is_no_worse_than_its_start_and_stationary():
    x, ranks = draw(*SHAPE), (2, 2, 2)
    found = hooi(x, ranks, n_iter=200, tol=0.0)
    assert found.core.norm() > st_hosvd(x, ranks).core.norm()
    for k, u in enumerate(found.factors):
        others = [None if j == k else f.T for j, f in enumerate(found.factors)]
        best = leading(unfold(multi_product(x, others), k), 2)
        torch.testing.assert_close(best @ best.T, u @ u.T, atol=1e-5, rtol=0)


def test_a_matrix_has_the_truncated_svd():
    x = draw(8, 9)
    u, s, v = torch.linalg.svd(x)
    torch.testing.assert_close(hooi(x, (3, 3)).full(), u[:, :3] * s[:3] @ v[:3])


def test_orthonormal_factors_keep_the_tensor_and_give_its_norm():
    tucker = Tucker(
        draw(2, 3, 2), tuple(draw(p, r, seed=p) for p, r in zip(SHAPE, (2, 3, 2), strict=True))
    )
    turned = tucker.orthonormal()
    torch.testing.assert_close(turned.full(), tucker.full())
    torch.testing.assert_close(turned.core.norm(), tucker.full().norm())


def test_along_multiplies_every_mode():
    tucker = hosvd(draw(*SHAPE), (2, 2, 2))
    matrices = [draw(3, p, seed=p) for p in SHAPE]
    torch.testing.assert_close(
        tucker.along(matrices).full(), multi_product(tucker.full(), matrices)
    )


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ((2, 2), "one rank a mode"),
        ((5, 2, 3), "size 4"),
        ((4, 2, 1), "product"),
        ((0, 1, 1), "at least 1"),
    ],
)
def test_ranks_that_no_tensor_has_are_refused(ranks, message):
    with pytest.raises(ValueError, match=message):
        hooi(draw(*SHAPE), ranks)
