"""Tuning: short recipes by task, what is delivered, dropout at another chance."""

import copy
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import bozzetto as bz
from bozzetto.train import Progress
from bozzetto.train.dropout import dropping

X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))


def network(chance: float = 0.5) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(chance), nn.Linear(16, 4))


def pairs() -> tuple[nn.Sequential, nn.Sequential]:
    """A teacher, and a student that is a little off."""
    teacher = network()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return student, teacher


def distance(student: nn.Module, teacher: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((student.eval()(x) - teacher.eval()(x)).square().mean())


def test_the_best_weights_by_the_held_out_objective_are_delivered_labels_or_not() -> None:
    student, teacher = pairs()
    recipe = bz.Recipe(epochs=4, loss="mse", lr=0.05, schedule="constant", distillation=1.0)
    seen: list[tuple[float, dict[str, Tensor]]] = []
    live, held = copy.deepcopy(student), [(X[40:50], None), (X[50:], None)]
    seen.append((distance(live, teacher, X[40:]), copy.deepcopy(live.state_dict())))

    def keep(progress: Progress) -> None:
        if progress.metrics:
            now = copy.deepcopy(live)
            seen.append((progress.metrics["objective"], now.state_dict()))

    best = replace(recipe, deliver="best")
    history = bz.train(live, [(X[:40], None)], best, teacher=teacher, val=held, callbacks=[keep])
    lowest = min(seen, key=lambda pair: pair[0])
    assert_close(dict(live.state_dict()), dict(lowest[1]), rtol=0, atol=0)
    assert [row["val_objective"] for row in history.epochs] == [loss for loss, _ in seen[1:]]
    assert distance(live, teacher, X[40:]) == pytest.approx(lowest[0], rel=1e-5)


def test_tuning_that_only_does_harm_delivers_what_it_began_with() -> None:
    student, teacher = pairs()
    before = copy.deepcopy(student.state_dict())
    recipe = bz.Recipe(epochs=2, loss="mse", lr=3.0, distillation=1.0, deliver="best")
    bz.train(student, [(X[:40], None)], recipe, teacher=teacher, val=[(X[40:], None)])
    assert_close(dict(student.state_dict()), dict(before), rtol=0, atol=0)


def test_the_best_of_the_averages_is_that_of_what_is_evaluated() -> None:
    student, teacher = pairs()
    recipe = bz.Recipe(epochs=3, loss="mse", lr=0.01, ema=0.9, deliver="best")
    held = [(X[40:], None)]
    start = distance(student, teacher, X[40:])
    history = bz.train(student, [(X[:40], None)] * 5, recipe, teacher=teacher, val=held)
    found = distance(student, teacher, X[40:])
    lowest = min(start, *(row["val_objective"] for row in history.epochs))
    assert found == pytest.approx(lowest, rel=1e-5)


@pytest.mark.parametrize("val", [None, []])
def test_choosing_the_best_needs_something_to_choose_on(val: list[Tensor] | None) -> None:
    student, teacher = pairs()
    with pytest.raises(ValueError, match="deliver='best' needs"):
        bz.train(student, [(X, None)], bz.Recipe(deliver="best"), teacher=teacher, val=val)


def test_choosing_the_best_passes_over_the_batches_more_than_once() -> None:
    student, teacher = pairs()
    recipe = bz.Recipe(epochs=1, loss="mse", deliver="best")
    with pytest.raises(ValueError, match="a val that can be iterated again"):
        bz.train(student, [(X, None)], recipe, teacher=teacher, val=iter([(X, None)]))


def test_dropout_is_as_the_recipe_says_and_then_as_before() -> None:
    teacher = network()
    plain, without = copy.deepcopy(teacher), copy.deepcopy(teacher)
    cast(Any, plain[2]).p = 0.0
    recipe = bz.Recipe(epochs=1, loss="mse", distillation=1.0)
    other = network()
    for model, used in ((plain, recipe), (without, replace(recipe, dropout=0.0))):
        bz.train(model, [(X, None)] * 3, used, teacher=other)
    assert_close(dict(without.state_dict()), dict(plain.state_dict()), rtol=0, atol=0)
    assert without[2].p == 0.5


def test_modules_that_hold_a_chance_drop_by_it_too() -> None:
    attention = bz.expand(nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True))
    parts: list[Any] = [attention, nn.LSTM(4, 4, 2, dropout=0.2), nn.Dropout2d(0.1)]
    model = nn.ModuleList(parts)

    def chances() -> list[float]:
        return [parts[0].dropout, parts[1].dropout, parts[2].p]

    with dropping(model, 0.0):
        assert chances() == [0.0, 0.0, 0.0]
    assert chances() == [0.3, 0.2, 0.1]


def problem(task: str) -> tuple[nn.Sequential, list[Any], list[Any]]:
    """A trained network with dropout, and labelled batches for tuning and for judging."""
    model = nn.Sequential(
        nn.Linear(12, 48), nn.Tanh(), nn.Dropout(0.2),
        nn.Linear(48, 48), nn.Tanh(), nn.Dropout(0.2), nn.Linear(48, 6),
    )  # fmt: skip
    x = torch.randn(640, 12) @ torch.randn(12, 12)
    mix = torch.randn(12, 6) / 4
    y = (x @ mix).sin() if task == "regression" else (x @ mix).argmax(1)
    made: list[Any] = list(zip(x.split(32), y.split(32), strict=True))
    bz.train(model, made[:16], bz.Recipe(epochs=10, lr=3e-3))
    if task == "embeddings":
        made = [(part, None) for part, _ in made]
    return model.eval(), made[:16], made[16:]


@pytest.mark.parametrize("task", ["classification", "regression", "embeddings"])
def test_a_short_recipe_for_every_task_brings_the_small_network_nearer(task: Any) -> None:
    model, data, held = problem(task)
    small, _ = bz.compress(model, 0.2, [x for x, _ in data])
    before, recipe = copy.deepcopy(small), bz.Recipe.tuning(task)
    scored = replace(recipe, epochs=1, lr=1e-12, deliver="best")  # measures, and changes nothing

    def held_out(net: nn.Module) -> float:
        metrics: Any = "mse" if task == "regression" else "accuracy"
        run = bz.train(
            copy.deepcopy(net), data[:1], scored, teacher=model, val=held, metric=metrics
        )
        return run.epochs[-1]["val_objective"]

    bz.train(small, data, recipe, teacher=model)
    assert held_out(small) < held_out(before)


def test_tasks_have_names() -> None:
    with pytest.raises(ValueError, match=r"one of \['classification', .*got 'ranking'"):
        bz.Recipe.tuning(cast(Any, "ranking"))
