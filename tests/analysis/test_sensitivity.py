"""Sensitivities: what the menu predicts, layer by layer."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import bozzetto as bz
from bozzetto.analysis.sensitivity import sensitivity
from bozzetto.compress import survey


@pytest.fixture(scope="module")
def made():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        layers = [nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)]
        return survey(nn.Sequential(*layers), [torch.randn(200, 24)])


def test_halving_costs_what_the_plan_of_that_layer_alone_is_predicted_to_cost(made):
    _, plan = made.compress(bz.Budget(params=0.6))
    for layer in sensitivity(made.menu, plan).layers:
        own = [c for c in made.menu.candidates if c.site == layer.layer]
        alone = replace(made.menu, candidates=own, target={"params": layer.values})
        chosen = alone.choose(bz.Budget(params=0.5))
        choice = chosen.choices[layer.layer]
        predicted = [c.impact for c in own if c.choice and c.choice.size == choice.size]
        assert layer.halved in predicted
        assert choice.params <= layer.values / 2


def test_planned_losses_add_up_to_what_the_plan_minimises(made):
    _, plan = made.compress(bz.Budget(params=0.6))
    found = sensitivity(made.menu, plan)
    whole = sum(x.kept for x in found.layers)
    assert whole == plan.small["params"]  # all values of this network are in such layers
    tighter = sensitivity(made.menu, made.compress(bz.Budget(params=0.4))[1])
    assert sum(x.planned for x in tighter.layers) > sum(x.planned for x in found.layers)
    dense = [x for x in found.layers if x.layer not in plan.choices]
    assert all((x.kept, x.planned) == (x.values, 0) for x in dense)


def test_a_plan_of_another_menu_is_refused(made):
    _, plan = made.compress(bz.Budget(params=0.6))
    path, choice = next(iter(plan.choices.items()))
    for choices in ({path: replace(choice, size=10_000)}, {"elsewhere": choice}):
        with pytest.raises(ValueError, match="of another menu"):
            sensitivity(made.menu, replace(plan, choices=choices))


def test_rows_and_figure_name_every_layer(made):
    from matplotlib.figure import Figure

    found = sensitivity(made.menu, made.compress(bz.Budget(params=0.6))[1])
    assert [row["layer"] for row in found.rows()] == ["0", "2", "4"]
    ax = Figure().subplots()
    found.figure(ax)
    assert [bar.get_width() for bar in ax.patches] == [x.halved for x in found.layers]
    dots = ax.lines[0].get_xdata()
    assert list(dots) == pytest.approx([x.planned or math.nan for x in found.layers], nan_ok=True)
