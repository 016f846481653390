"""Chosen signs and the hybrid: against brute force, their own prefixes, and what they must beat."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bozzetto as bz
from bozzetto.linalg import random_normal
from bozzetto.maps import linear_map
from bozzetto.methods import Hybrid, LowRank, Method, Objective, SignsMethod
from bozzetto.methods.choosing import choose_signs
from bozzetto.methods.signs import largest_signs
from bozzetto.nn import Signs
from bozzetto.prices import count_bytes, count_flops
from bozzetto.testing.methods import calibration
from networks import NETWORKS


def normal(*shape: int, seed: int = 0) -> Tensor:
    return random_normal(seed, torch.Size(shape).numel()).view(shape)


def metric(d: int, seed: int = 1) -> Tensor:
    """A moment whose eigenvalues fall like 1/i."""
    x = normal(4 * d, d, seed=seed) / torch.arange(1, d + 1).double().sqrt()
    turned = x @ torch.linalg.qr(normal(d, d, seed=2))[0]
    return turned.mT @ turned / len(x)


def objective(layer: nn.Module) -> Objective:
    m = linear_map(layer.double())
    return Objective(m, calibration(m, "ordinary"))


def left(h: Tensor, c: Tensor, signs: Tensor) -> float:
    """What the best approximation of h in the span of the signs leaves, by least squares."""
    root = torch.linalg.cholesky(c)
    rows, target = signs.double() @ root, h @ root
    fit = torch.linalg.lstsq(rows.mT, target.mT, driver="gelsd").solution
    return float((target.mT - rows.mT @ fit).square().sum())


def fitted(method: Method, o: Objective, size: int) -> nn.Module:
    layer = method.build(o.map, size, 0)
    method.fit_(layer, o)
    return layer


# ---- choosing


@pytest.mark.parametrize("seed", range(6))
def test_the_first_vector_is_near_the_best_of_all(seed: int) -> None:
    h, c = normal(3, 11, seed=seed), metric(11, seed)
    every = torch.tensor(list(product((-1.0, 1.0), repeat=10)), dtype=torch.float64)
    every = torch.cat([torch.ones(len(every), 1, dtype=torch.float64), every], 1)
    taken = (every @ c @ h.mT).square().sum(1) / ((every @ c) * every).sum(1)
    (s,) = choose_signs(h, c, 1).signs
    found = (s @ c @ h.mT).square().sum() / (s @ c @ s)
    assert found >= 0.8 * taken.max()


def test_no_single_flip_of_the_first_vector_is_better() -> None:
    h, c = normal(8, 40), metric(40)
    (s,) = choose_signs(h, c, 1).signs
    flipped = s - 2 * torch.diag(s)  # one a row
    errors = [left(h, c, row.unsqueeze(0)) for row in flipped]
    assert min(errors) >= left(h, c, s.unsqueeze(0)) * (1 - 1e-4)


def test_the_basis_spans_the_signs_and_is_orthonormal_in_the_metric() -> None:
    h, c = normal(8, 40), metric(40)
    chosen = choose_signs(h, c, 12)
    basis = torch.linalg.solve_triangular(chosen.triangle, chosen.signs, upper=False)
    assert set(chosen.signs.unique().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(basis @ c @ basis.mT, torch.eye(12).double(), atol=1e-8, rtol=0)
    torch.testing.assert_close(chosen.images, basis @ c)


def test_fewer_vectors_are_the_first_of_more() -> None:
    h, c = normal(8, 40), metric(40)
    few, many = choose_signs(h, c, 5), choose_signs(h, c, 12).first(5)
    for one, other in zip(few, many, strict=True):
        torch.testing.assert_close(one, other)


def test_a_diagonal_metric_is_the_full_one_with_that_diagonal() -> None:
    h, c = normal(8, 30), torch.rand(30).double() + 0.1
    short, full = choose_signs(h, c, 6), choose_signs(h, torch.diag(c), 6)
    assert left(h, torch.diag(c), short.signs) == pytest.approx(left(h, torch.diag(c), full.signs))


@pytest.mark.parametrize("rows", [1, 3])
def test_more_vectors_than_there_is_to_explain_are_no_harm(rows: int) -> None:
    h, c = normal(rows, 12), metric(12)
    chosen = choose_signs(h, c, 12)
    assert chosen.images.isfinite().all()
    assert left(h, c, chosen.signs) <= 1e-9 * float(((h @ c) * h).sum())


def test_nothing_to_explain_still_gives_signs() -> None:
    chosen = choose_signs(torch.zeros(3, 9).double(), metric(9), 4)
    assert set(chosen.signs.unique().tolist()) == {-1.0, 1.0}
    assert chosen.images.isfinite().all()


def test_chosen_signs_explain_far_more_than_random_ones() -> None:
    h, c = normal(24, 64), metric(64)
    chosen = left(h, c, choose_signs(h, c, 12).signs)
    drawn = [left(h, c, normal(12, 64, seed=seed).sign()) for seed in range(20)]
    assert chosen < 0.6 * min(drawn)


# ---- the layers


@pytest.mark.parametrize("method", [SignsMethod(), Hybrid()])
@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Linear(48, 40),
        lambda: nn.Conv2d(12, 16, 3, stride=2, groups=2),
        lambda: nn.ConvTranspose2d(12, 16, 3, stride=2),
    ],
)
def test_no_size_costs_more_multiply_adds_than_the_dense_layer(
    method: Method, build: Callable[[], nn.Module]
) -> None:
    layer = build().double()
    m = linear_map(layer)
    x = normal(2, m.inputs, *[20] * (-1 - m.op.dim))
    dense = count_flops(lambda: layer(x))
    small = method.build(m, method.most(m), 0)
    assert 0.75 * dense < count_flops(lambda: small(x)) <= 1.05 * dense


def test_the_largest_number_of_signs_is_the_largest() -> None:
    m = linear_map(nn.Linear(48, 40))
    for exact in (0, 3, 10, 21):
        k = largest_signs(m, exact)
        cost = [exact * 88 + k * 88 + k * k for k in (k, k + 1)]
        assert cost[0] <= 48 * 40 < cost[1]


@pytest.mark.parametrize("build", [lambda: nn.Linear(64, 64), lambda: nn.Conv2d(16, 16, 3)])
def test_signs_beat_low_rank_of_half_as_many_bytes_again(build: Callable[[], nn.Module]) -> None:
    o = objective(build())
    size = SignsMethod().most(o.map)
    small = fitted(SignsMethod(), o, size)
    rank = LowRank().most(o.map, 1.5 * count_bytes(small) / count_bytes(o.map.module()))
    (signs,), (low,) = SignsMethod().errors(o, [size]), LowRank().errors(o, [rank])
    assert 1.5 * count_bytes(small) <= count_bytes(fitted(LowRank(), o, rank + 1))
    assert signs < low


def test_the_hybrid_beats_its_parts_of_no_fewer_bytes() -> None:
    o = objective(nn.Linear(64, 64))
    size = round(0.25 * 64)
    small = fitted(Hybrid(), o, size)
    share = count_bytes(small) / count_bytes(o.map.module())
    rank = LowRank().most(o.map, share) + 1
    most = SignsMethod().most(o.map)
    (both,) = Hybrid().errors(o, [size])
    (low,), (signs,) = LowRank().errors(o, [rank]), SignsMethod().errors(o, [most])
    assert both < min(low, signs)


def test_fitting_in_turn_improves_on_fitting_once() -> None:
    o = objective(nn.Linear(40, 40))
    small = fitted(Hybrid(), o, 6)
    exact = fitted(LowRank(), o, 6)
    signs = Objective(linear_map(small_rest(o, exact)), o.stats)
    (once,) = SignsMethod().errors(signs, [largest_signs(o.map, 6)])
    assert o.error(o.w - Hybrid().weight(small, o.map)) < once


def small_rest(o: Objective, exact: nn.Module) -> nn.Linear:
    """The layer of what exact factors leave."""
    rest = nn.Linear(40, 40, dtype=torch.float64)
    with torch.no_grad():
        rest.weight.copy_((o.w - LowRank().weight(exact, o.map))[0])
    return rest


def test_a_half_precision_layer_holds_the_same_signs() -> None:
    layer = nn.Linear(40, 40)
    o = objective(layer)
    exact = fitted(SignsMethod(), o, 8)
    half = Objective(linear_map(layer.bfloat16()), o.stats)
    rough = fitted(SignsMethod(), half, 8)
    assert isinstance(exact, nn.Sequential)
    assert isinstance(rough, nn.Sequential)
    first = exact[0]
    assert isinstance(first, Signs)
    assert rough[1].weight.dtype == torch.bfloat16
    error = half.error(half.w - SignsMethod().weight(rough, half.map))
    assert error <= 1.05 * SignsMethod().errors(half, [8])[0]


# ---- whole networks


@pytest.mark.parametrize("method", ["signs", "hybrid"])
def test_a_network_of_signs_is_saved_in_its_bytes_and_comes_back(
    method: str, tmp_path: Path
) -> None:
    model, x = NETWORKS["cnn"]()
    small, plan = bz.compress(model.eval(), bz.Budget(bytes=0.6), [x], methods=method)
    assert {choice.method for choice in plan.choices.values()} == {method}
    assert plan.small["bytes"] == count_bytes(small) <= 0.6 * count_bytes(model)
    bz.save(tmp_path / "out", small, plan)
    back = bz.load(tmp_path / "out", model)
    torch.testing.assert_close(back(x), small.eval()(x), rtol=0, atol=0)
    names = [name for name, value in small.state_dict().items() if value.dtype == torch.uint8]
    assert len(names) == 2 * len(plan.choices)


def test_signs_are_tried_where_bytes_are_bounded_and_only_there() -> None:
    model, x = NETWORKS["mlp"]()
    methods = {}
    for budget in (bz.Budget(bytes=0.3), bz.Budget(params=0.3)):
        _, plan = bz.compress(model, budget, [x])
        methods[budget] = {choice.method for choice in plan.choices.values()}
    memory, values = methods.values()
    assert "signs" in memory
    assert values == {"lowrank"}


def test_a_network_of_signs_trains_its_cores_alone() -> None:
    model, x = NETWORKS["mlp"]()
    small, _ = bz.compress(model, bz.Budget(bytes=0.3), [x], methods="signs")
    bits = {name: value.clone() for name, value in small.state_dict().items() if "bits" in name}
    optimizer = torch.optim.SGD(small.parameters(), 1e-3)
    before = (small(x) - model(x).detach()).square().mean()
    for _ in range(20):
        optimizer.zero_grad()
        loss = (small(x) - model(x).detach()).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < before
    for name, value in bits.items():
        torch.testing.assert_close(small.state_dict()[name], value, rtol=0, atol=0)
