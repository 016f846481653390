import itertools

import numpy as np
import pytest

from bozzetto.knapsack import Unreachable, knapsack, least


def instance(seed: int) -> tuple[list[int], dict[str, np.ndarray], np.ndarray]:
    draw = np.random.default_rng(seed)
    groups = [g for g in range(4) for _ in range(int(draw.integers(2, 5)))]
    costs = {name: draw.integers(1, 50, len(groups)).astype(float) for name in ("params", "flops")}
    return groups, costs, draw.random(len(groups))


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_the_best_of_all(seed: int) -> None:
    groups, costs, loss = instance(seed)
    limits = {name: int(least(groups, cost) + 25) for name, cost in costs.items()}
    members = [[i for i, g in enumerate(groups) if g == group] for group in range(4)]
    allowed = [
        pick
        for pick in itertools.product(*members)
        if all(costs[name][list(pick)].sum() <= limits[name] for name in limits)
    ]
    if not allowed:
        with pytest.raises(Unreachable):
            knapsack(groups, costs, loss, limits)
        return
    best = min(loss[list(pick)].sum() for pick in allowed)
    chosen = knapsack(groups, costs, loss, limits)
    assert sorted(groups[i] for i in chosen) == [0, 1, 2, 3]
    assert all(costs[name][chosen].sum() <= limits[name] for name in limits)
    assert loss[chosen].sum() == pytest.approx(best, rel=1e-5)


def test_bounds_that_exclude_each_other_are_named() -> None:
    costs = {"params": np.array([1.0, 9.0]), "flops": np.array([9.0, 1.0])}
    with pytest.raises(Unreachable, match="all at once"):
        knapsack([0, 0], costs, np.array([0.5, 0.5]), {"params": 5, "flops": 5})


def test_solving_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    groups = [g for g in range(20) for _ in range(24)]
    cost = np.tile(np.arange(1.0, 25.0), 20) * np.repeat(draw.integers(100, 400, 20), 24)
    loss = np.tile(1 / np.arange(1.0, 25.0) ** 2, 20) * np.repeat(draw.random(20), 24)
    for share in (0.15, 0.25, 0.4):
        knapsack(groups, {"params": cost}, loss, {"params": int(share * cost.sum() / 12)})
    assert capfd.readouterr() == ("", "")


def test_what_the_solver_prints_does_not_reach_the_programs_output(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ctypes

    import bozzetto.knapsack as module

    real = module.milp

    def loud(*args: object, **options: object) -> object:
        ctypes.CDLL(None).puts(b"HighsMipSolverData")
        return real(*args, **options)

    monkeypatch.setattr(module, "milp", loud)
    knapsack([0, 0], {"params": np.array([1.0, 2.0])}, np.array([0.5, 0.1]), {"params": 2})
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(("limit", "chosen"), [(1, [1]), (0, [0])])
def test_a_limit_of_nothing_is_a_limit(limit: int, chosen: list[int]) -> None:
    costs = {"params": np.array([0.0, 1.0])}
    assert knapsack([0, 0], costs, np.array([0.5, 0.1]), {"params": limit}) == chosen
