"""Recipes, schedules and optimisers by name."""

import json
import warnings
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, OneCycleLR

import bozzetto as bz
from bozzetto.nn.cores import reductions
from bozzetto.train import OPTIMIZERS, SCHEDULES, Recipe
from bozzetto.train.optimizers import parameter_groups
from bozzetto.train.schedule import rate_factor


def factors(name, steps, warmup):
    return [rate_factor(name, step, steps, warmup) for step in range(steps)]


def torch_factors(make, steps):
    optimizer = SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
    schedule, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            schedule.step()
    return found


def test_a_recipe_survives_json():
    recipe = Recipe(epochs=3, optimizer="sgd", settings={"nesterov": True}, lr=0.1, ema=0.99)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert Recipe.from_dict({}) == Recipe()


@pytest.mark.parametrize("field", ["optimizer", "loss"])
def test_a_recipe_with_a_callable_is_not_saved(field):
    with pytest.raises(TypeError, match=f"cannot be saved: {field} is"):
        Recipe(**{field: lambda *_: None}).to_dict()


def test_an_unknown_field_is_refused():
    with pytest.raises(ValueError, match=r"got \['learning_rate'\]"):
        Recipe.from_dict({"learning_rate": 0.1})


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("epochs", 0, "epochs needs to be >= 1; got 0"),
        ("accumulate", 0, "accumulate needs to be >= 1"),
        ("lr", 0.0, "lr needs to be > 0"),
        ("lr", float("nan"), "lr needs to be > 0; got nan"),
        ("momentum", 1.0, r"momentum needs to be in \[0, 1\)"),
        ("weight_decay", -1.0, "weight_decay needs to be >= 0"),
        ("warmup", 1.0, "warmup needs to be in"),
        ("label_smoothing", 1.0, "label_smoothing needs to be in"),
        ("distillation", 1.1, r"distillation needs to be in \[0, 1\]; got 1.1"),
        ("temperature", 0.0, "temperature needs to be > 0"),
        ("clip", 0.0, "clip needs to be > 0"),
        ("ema", 1.0, r"ema needs to be in \(0, 1\)"),
        ("dropout", 1.0, r"dropout needs to be in \[0, 1\)"),
        ("deliver", "first", "deliver needs to be one of"),
        ("optimizer", "lion", r"\['sgd', 'adam', 'adamw'\] or a callable; got 'lion'"),
        ("schedule", "linear", "schedule needs to be one of"),
        ("loss", "l1", "loss needs to be one of.*or a callable; got 'l1'"),
        ("precision", "float16", "precision needs to be one of"),
    ],
)
def test_a_value_out_of_range_is_refused(field, value, says):
    with pytest.raises(ValueError, match=says):
        Recipe(**{field: value})


@pytest.mark.parametrize(("field", "value"), [("epochs", 1.5), ("epochs", True), ("lr", "0.1")])
def test_a_value_of_another_type_is_refused(field, value):
    with pytest.raises(TypeError, match=f"{field} needs a"):
        Recipe(**{field: value})


def test_settings_that_would_do_nothing_are_refused():
    with pytest.raises(ValueError, match="settings are of a named optimizer"):
        Recipe(optimizer=SGD, settings={"nesterov": True})
    with pytest.raises(ValueError, match="label_smoothing needs cross entropy; got loss='mse'"):
        Recipe(loss="mse", label_smoothing=0.1)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.3, 0.99])
def test_every_schedule_stays_in_0_1_and_reaches_its_height(name, steps, warmup):
    found = factors(name, steps, warmup)
    assert all(0 < factor <= 1 for factor in found)
    if steps == 100:
        assert max(found) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_rises_in_its_warm_up_and_never_after(name):
    found = factors(name, 100, 0.3)
    rises = [b > a for a, b in pairwise(found)]
    assert all(rises[:28])
    assert not any(rises[30:])


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("constant", lambda o: MultiStepLR(o, [])),
        ("cosine", lambda o: CosineAnnealingLR(o, 40)),
        ("step", lambda o: MultiStepLR(o, [20, 30])),
    ],
)
def test_schedules_without_warm_up_are_torchs(name, make):
    assert factors(name, 40, 0.0) == pytest.approx(torch_factors(make, 40), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("warmup", [0.3, 0.05, 0.1])
def test_one_cycle_is_torchs(warmup):
    def make(optimizer):
        return OneCycleLR(optimizer, 1.0, total_steps=40, pct_start=warmup, cycle_momentum=False)

    assert factors("onecycle", 40, warmup) == pytest.approx(torch_factors(make, 40), rel=1e-9)


def test_a_schedule_without_a_known_length_is_refused():
    assert rate_factor("constant", 7, None, 0.0) == 1
    with pytest.raises(ValueError, match=r"'constant' with warmup 0\.1 needs the number"):
        rate_factor("constant", 0, None, 0.1)
    with pytest.raises(ValueError, match=r"'cosine' with warmup 0\.0 needs the number"):
        rate_factor("cosine", 0, None, 0.0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.conv = nn.Conv1d(1, 2, 3)
        self.norm = nn.LayerNorm((2, 2))
        self.tied = self.linear
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
        self.bias_table = nn.Parameter(torch.zeros(2, 2))
        self.scale = nn.Parameter(torch.zeros(3))


def test_only_weights_are_decayed_and_each_parameter_comes_once():
    net = Net()
    decayed, kept = parameter_groups(net, lr=0.5, weight_decay=0.1)
    assert [id(p) for p in decayed["params"]] == [id(net.linear.weight), id(net.conv.weight)]
    rest = [net.bias_table, net.scale, net.linear.bias, net.conv.bias, *net.norm.parameters()]
    assert {id(p) for p in kept["params"]} == {id(p) for p in rest}
    assert len(kept["params"]) == len(rest)
    assert (decayed["lr"], decayed["weight_decay"]) == (0.5, 0.1)
    assert (kept["lr"], kept["weight_decay"]) == (0.5, 0.0)
    assert decayed["reduction"] == kept["reduction"] == 1.0


def test_a_model_with_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="needs a parameter with requires_grad=True"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), lr=None, weight_decay=None)


def _sketched(**options: Any) -> nn.Module:
    dense = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    return bz.sketch(dense, 0.3, layers="0", ends="sketched", **options)[0]


@pytest.mark.parametrize(
    "options", [{}, {"sides": "in"}, {"sides": "out", "family": "sign"}, {"sides": "both"}], ids=str
)
def test_cores_learn_faster_by_the_root_of_how_much_smaller_they_are(options):
    small = _sketched(**options)
    cores = [p for name, p in small.named_parameters() if p.ndim == 2 and name.startswith("0.")]
    c = 64 * 64 / sum(core.numel() for core in cores)
    assert c > 3
    for name, factor in (("sgd", 1.0), ("adam", c**0.5), ("adamw", c**0.5)):
        groups = parameter_groups(small, lr=0.1, weight_decay=None)
        rates = {
            id(p): group["lr"]
            for group in OPTIMIZERS[name](groups, 0.9, {}).param_groups
            for p in group["params"]
        }
        plain = small.get_parameter("2.weight")
        assert {round(rates[id(core)] / (0.1 * factor), 9) for core in cores} == {1.0}
        assert rates[id(plain)] == 0.1


@pytest.mark.parametrize("options", [{}, {"sides": "in"}, {"sides": "out"}], ids=str)
def test_a_step_of_signs_lowers_the_loss_of_cores_as_much_as_the_dense_one(options):
    gradient = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).double()
    ratios = []
    for seed in range(20):
        small = _sketched(seed=seed, **options).double()
        layer = small.get_submodule("0")
        y = layer(torch.eye(64, dtype=torch.float64)) - layer(torch.zeros(1, 64).double())
        (y * gradient.T).sum().backward()  # y.T is the weight
        ((core, c),) = reductions(small).items()
        assert core.grad is not None
        ratios.append(float(c**0.5 * core.grad.abs().sum() / gradient.abs().sum()))
    mean, error = fmean(ratios), stdev(ratios) / len(ratios) ** 0.5
    assert abs(mean - 1) < 4 * error + 0.01, (mean, error)  # few entries are summed: near Gaussian


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_momentum_and_settings(name):
    groups = parameter_groups(nn.Linear(2, 2), lr=0.5, weight_decay=0.25)
    optimizer = OPTIMIZERS[name](groups, 0.7, {"maximize": True})
    group = optimizer.param_groups[0]
    assert 0.7 in (group.get("momentum"), group.get("betas", [None])[0])
    assert (group["maximize"], group["lr"], group["weight_decay"]) == (True, 0.5, 0.25)
    assert type(optimizer).__name__.lower() == name
