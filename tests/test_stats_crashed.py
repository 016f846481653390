"""Statistics of inputs that crash, against all patterns of crashes, and what planning gains."""

import itertools

import pytest
import torch
from torch import Tensor, nn

import bozzetto as bz
from bozzetto.analysis.crash import Crash
from bozzetto.analysis.crash.faulty import FaultySites, broken_neurons
from bozzetto.linalg import seeded
from bozzetto.moments import SketchedMoment


def random(*shape: int) -> Tensor:
    with seeded(3, torch.device("cpu")):
        return torch.randn(*shape, dtype=torch.float64) + 0.4


def broken(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Every pattern of crashes of x (b, n): rows (patterns, b, n) and their chances."""
    alive = torch.tensor(list(itertools.product([0.0, 1.0], repeat=x.shape[1]))).double()
    chance = (alive * (1 - p) + (1 - alive) * p).prod(1)
    return alive.unsqueeze(1) * x, chance


@pytest.mark.parametrize("p", [0.0, 0.1, 0.7])
def test_moments_are_those_over_all_crashes(p: float) -> None:
    x, layer = random(5, 6), nn.Linear(6, 3).double()
    found = bz.collect(nn.Sequential(layer), [x])["0"].crashed(p)
    rows, chance = broken(x, p)
    moment = torch.einsum("p,pbi,pbj->ij", chance, rows, rows) / len(x)
    assert isinstance(found.moment, Tensor)
    torch.testing.assert_close(found.moment[0], moment)
    torch.testing.assert_close(found.mean, torch.einsum("p,pbi->i", chance, rows)[None] / len(x))


def test_sketched_moments_crash_like_whole_ones() -> None:
    x, p = random(1, 40, 12), 0.3
    whole = x.mT @ x
    mixed = (1 - p) ** 2 * whole + p * (1 - p) * torch.diag_embed(whole.diagonal(dim1=-2, dim2=-1))
    found = SketchedMoment.of(x, rank=5).crashed(p)
    rows = torch.linalg.cholesky(mixed).mT  # (1, n, n), whose moment is `mixed`
    exact = SketchedMoment.of(rows, rank=5)
    torch.testing.assert_close(found.diagonal, exact.diagonal)
    torch.testing.assert_close(found.product, exact.product)


def test_indices_do_not_crash_and_chances_are_checked() -> None:
    table = nn.Sequential(nn.Embedding(4, 2))
    stats = bz.collect(table, [torch.tensor([[0, 1, 3]])])["0"]
    assert stats.crashed(0.5) is stats
    with pytest.raises(ValueError, match=r"lies in \[0, 1\); got 1"):
        stats.crashed(1)


def test_a_layer_fitted_to_crashes_imitates_the_broken_target_better() -> None:
    """With as many values, under the same crashes; by more than five standard errors."""
    with seeded(0, torch.device("cpu")):
        target = nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 16))
        x = torch.randn(200, 4)
    stats, p, budget = bz.collect(target, [x]), 0.1, bz.Budget(params=0.5)
    run = broken_neurons(FaultySites(target, x), Crash(), None, "neuron")
    whole = run(x, p, range(400), 0)
    errors = []
    for known in (stats, stats | {"2": stats["2"].crashed(p)}):
        made = bz.plan(target, known, budget, layers="2", methods="lowrank")
        small = bz.rebuild(target, made, known)
        run = broken_neurons(FaultySites(small, x), Crash(), None, "neuron")
        errors.append((run(x, p, range(400), 0) - whole).square().mean((1, 2)).detach())
    gain = errors[0] - errors[1]
    assert gain.mean() > 5 * gain.std() / len(gain) ** 0.5


def test_robustness_plans_and_fits_with_statistics_that_crash() -> None:
    with seeded(0, torch.device("cpu")):
        target = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 16))
        x = torch.randn(100, 12)
    stats, p = bz.collect(target, [x]), 0.1
    broken_stats = {path: each.crashed(p) for path, each in stats.items()}
    budget = bz.Budget(params=0.5)
    made = bz.plan(target, broken_stats, budget, batch=x)
    assert bz.plan(target, stats, budget, batch=x, robustness=p) == made
    assert bz.plan(target, stats, budget, batch=x, robustness=0.0) != made
    small, delivered = bz.compress(target, 0.5, [x], robustness=p)
    assert delivered == made
    torch.testing.assert_close(small(x), bz.rebuild(target, made, broken_stats)(x))
    with pytest.raises(ValueError, match=r"lies in \[0, 1\); got 1.5"):
        bz.compress(target, 0.5, [x], robustness=1.5)
