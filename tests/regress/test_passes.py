"""The two passes against dense formulas: moments, tangent spaces and sketched least squares."""

import pytest
import torch
from planted import random_tucker

from bozzetto.regress.designs import Dense, RankOne, inner
from bozzetto.regress.directions import Coordinates, Directions
from bozzetto.regress.moments import Block, measure
from bozzetto.regress.online import overlap
from bozzetto.regress.sketched import covariates, sketch_block, unpack
from bozzetto.tensors import unfold

SHAPE = (4, 5, 3)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rank_one() -> tuple[RankOne, Dense]:
    factors = tuple(draw(9, p, seed=p) for p in SHAPE)
    return RankOne(factors), Dense(torch.einsum("bi,bj,bk->bijk", *factors))


def basis(directions: Directions, shape: tuple[int, ...]) -> torch.Tensor:
    """The tangent space's basis as full tensors: (m, p₁, …)."""
    ranks = directions.ranks
    arms = [torch.zeros(p - r, r).double() for p, r in zip(shape, ranks, strict=True)]
    parts = [torch.zeros(ranks).double(), *arms]
    tensors = []
    for k, part in enumerate(parts):
        for one in torch.eye(part.numel(), dtype=torch.float64):
            core, *rest = [one.reshape(p.shape) if j == k else p for j, p in enumerate(parts)]
            tensors.append(directions.tensor(Coordinates(core, tuple(rest))).full())
    return torch.stack(tensors)


@pytest.fixture
def directions() -> Directions:
    return Directions.at(random_tucker(SHAPE, (2, 2, 2), 0))[0]


def test_the_tangent_basis_is_orthonormal_and_has_the_manifolds_dimension(directions):
    flat = basis(directions, SHAPE).flatten(1)
    assert len(flat) == 8 + 2 * 2 + 3 * 2 + 1 * 2
    torch.testing.assert_close(flat @ flat.T, torch.eye(len(flat), dtype=torch.float64))


def test_sketched_covariates_are_inner_products_with_the_basis(directions):
    x = draw(9, *SHAPE)
    expected = x.flatten(1) @ basis(directions, SHAPE).flatten(1).T
    torch.testing.assert_close(covariates(Dense(x), directions)[0][:, 0], expected)


def test_float32_covariates_are_measured_in_their_own_precision(directions):
    x = draw(9, *SHAPE).float()
    expected = x.double().flatten(1) @ basis(directions, SHAPE).flatten(1).T
    torch.testing.assert_close(
        covariates(Dense(x), directions)[0][:, 0], expected, atol=1e-5, rtol=0
    )


def test_the_tensor_itself_lies_in_its_tangent_space_with_no_arms():
    tucker = random_tucker(SHAPE, (2, 3, 2), 3)
    directions, core = Directions.at(tucker)
    coordinates = covariates(Dense(tucker.full()[None]), directions)[0][0, 0]
    expected = torch.cat([core.flatten(), torch.zeros(len(coordinates) - core.numel()).double()])
    torch.testing.assert_close(coordinates, expected)


def test_retraction_is_exact_on_the_manifold_and_first_order_beside_it(directions):
    tucker = random_tucker(SHAPE, (2, 2, 2), 0)
    step = draw(20, 1, seed=5)

    def gap(size: float) -> float:
        start = covariates(Dense(tucker.full()[None]), directions)[0][0, 0][:, None]
        point = unpack(start + size * step, [], directions)
        return float((directions.retract(point).full() - directions.tensor(point).full()).norm())

    assert gap(0.0) < 1e-12
    assert gap(1e-3) < 4 * gap(5e-4) * 1.2
    assert gap(1e-3) > 3 * gap(5e-4)


def test_overlap_is_the_inner_products_of_two_bases(directions):
    other = Directions.at(random_tucker(SHAPE, (2, 2, 2), 7))[0]
    expected = basis(other, SHAPE).flatten(1) @ basis(directions, SHAPE).flatten(1).T
    torch.testing.assert_close(overlap(other, directions), expected)


def test_rank_one_covariates_answer_as_their_dense_tensors(directions):
    sparse, dense = rank_one()
    weights, columns = draw(2, 9, seed=2), torch.tensor([0, 3, 7])
    torch.testing.assert_close(sparse.weighted_sums(weights), dense.weighted_sums(weights))
    for k in range(3):
        torch.testing.assert_close(sparse.fibres(k, columns), dense.fibres(k, columns))
        expected = unfold(dense.values[4], k)[:, columns]
        torch.testing.assert_close(dense.fibres(k, columns)[4], expected)
    torch.testing.assert_close(covariates(sparse, directions), covariates(dense, directions))
    tucker = random_tucker((*SHAPE, 6), (2, 2, 2, 3), 1)
    expected = torch.tensordot(dense.values, tucker.full(), 3)
    torch.testing.assert_close(inner(sparse, tucker), expected)
    torch.testing.assert_close(inner(dense, tucker), expected)
    rows = [torch.tensor([0, 2])] * 3
    torch.testing.assert_close(
        sparse.restrict(rows).cores([torch.eye(2).double()] * 3),
        dense.restrict(rows).values.flatten(1),
    )


def test_factors_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="one b"):
        RankOne((draw(3, 4), draw(2, 4)))


def weighted() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return draw(9, *SHAPE) + 5, draw(9, 2, seed=1) - 3, draw(9, seed=2).abs()


def test_moments_are_the_centred_weighted_sums():
    x, y, w = weighted()
    found = measure(Block(Dense(x), y, w))
    share = w / w.sum()
    dx = x - torch.tensordot(share, x, 1)
    dy = y - share @ y
    torch.testing.assert_close(found.cross, torch.einsum("b,bijk,bq->ijkq", w, dx, dy))
    torch.testing.assert_close(found.modes[1], torch.einsum("b,bijk,bilk->jl", w, dx, dx))
    assert found.square == pytest.approx(float((w[:, None] * dy**2).sum()))
    assert found.count == 9


def test_merged_moments_and_sketches_are_those_of_all_observations(directions):
    x, y, w = weighted()
    y = y[:, 0]
    blocks = [Block(Dense(x[s]), y[s], w[s]) for s in (slice(0, 2), slice(2, 3), slice(3, 9))]
    first, *others = [measure(block) for block in blocks]
    for other in others:
        first = first.merge(other)
    whole = measure(Block(Dense(x), y, w))
    for name in ("cross", "mean_x", "mean_y", "modes"):
        torch.testing.assert_close(getattr(first, name), getattr(whole, name))
    assert first.square == pytest.approx(whole.square)
    first, *others = [sketch_block(block, directions).main for block in blocks]
    for other in others:
        first = first.merge(other)
    whole = sketch_block(Block(Dense(x), y, w), directions).main
    for name in ("gram", "moment", "mean", "mean_y"):
        torch.testing.assert_close(getattr(first, name), getattr(whole, name))


def test_sums_about_zero_are_the_uncentred_ones(directions):
    x, y, w = weighted()
    found = measure(Block(Dense(x), y, w)).about_zero()
    torch.testing.assert_close(found.cross, torch.einsum("b,bijk,bq->ijkq", w, x, y))
    torch.testing.assert_close(found.modes[0], torch.einsum("b,bijk,bljk->il", w, x, x))
    assert found.square == pytest.approx(float((w[:, None] * y**2).sum()))
    phi = covariates(Dense(x), directions)[0][:, 0]
    sums = sketch_block(Block(Dense(x), y[:, 0], w), directions).main.about_zero()
    torch.testing.assert_close(sums.gram, phi.T @ (w[:, None] * phi))


def test_least_squares_of_a_singular_gram_has_the_least_norm(directions):
    x, y, w = weighted()  # 9 observations, 20 unknowns
    sums = sketch_block(Block(Dense(x), y[:, 0], w), directions).main
    phi, root = covariates(Dense(x), directions)[0][:, 0], w.sqrt()[:, None]
    share = w / w.sum()
    a, b = root * (phi - share @ phi), root[:, 0] * (y[:, 0] - share @ y[:, 0])
    torch.testing.assert_close(sums.solve(0.0, 0.0)[:, 0], torch.linalg.pinv(a) @ b)
    ridge = torch.linalg.solve(a.T @ a + 0.7 * torch.eye(20).double(), a.T @ b)
    torch.testing.assert_close(sums.solve(0.7, 0.0)[:, 0], ridge)


def test_a_tensor_response_decouples_into_the_tangent_least_squares():
    tucker = random_tucker((4, 3, 5, 2), (2, 2, 3, 2), 0)  # the last two modes are the response's
    directions, _ = Directions.at(tucker)
    x, y = draw(40, 4, 3), draw(40, 5, 2, seed=1)
    sums = sketch_block(Block(Dense(x), y, torch.ones(40).double()), directions)
    found = unpack(sums.main.solve(0, 0), [s.solve(0, 0) for s in sums.outside], directions)
    tensors = basis(directions, tucker.shape)  # (m, 4, 3, 5, 2)
    design = torch.einsum("bij,mijkl->bklm", x - x.mean(0), tensors).flatten(0, 2)
    theta = torch.linalg.lstsq(design, (y - y.mean(0)).flatten()[:, None]).solution
    expected = torch.tensordot(theta[:, 0], tensors, 1)
    torch.testing.assert_close(directions.tensor(found).full(), expected)
