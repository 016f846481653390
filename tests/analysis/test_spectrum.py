"""Spectra against dense singular values, and against the errors of layers of low rank."""

import pytest
import torch
from torch import Tensor, nn

import bozzetto as bz
from bozzetto.analysis.spectrum import effective_rank, spectra, stable_rank
from bozzetto.maps import linear_map
from bozzetto.methods import Objective, make_method


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_equal_singular_values_count_as_their_number(rank: int):
    values = torch.cat([torch.full((rank,), 2.5), torch.zeros(4)]).double()
    assert stable_rank(values) == pytest.approx(rank)
    assert effective_rank(values) == pytest.approx(rank)


def test_of_nothing_the_ranks_are_zero():
    assert stable_rank(torch.zeros(3)) == effective_rank(torch.zeros(3)) == 0


def test_ranks_do_not_depend_on_the_scale_and_stable_is_the_smaller():
    values = draw(20).abs().double()
    for rank in (stable_rank, effective_rank):
        assert rank(values) == pytest.approx(rank(values * 1e-9))
        assert 1 <= rank(values) <= 20
    top = torch.tensor([1.0, 1e-12, 1e-12])
    assert stable_rank(top) == pytest.approx(1)


def test_singular_values_are_those_of_the_weight(network: tuple[nn.Module, Tensor]):
    model, x = network
    stats = bz.collect(model, [x])
    found = spectra(model, stats)
    expanded = dict(bz.expand(model).named_modules())
    assert found.layers
    for layer in found.layers:
        w = linear_map(expanded[layer.layer]).matrix().detach()
        energy = w.square().sum()
        torch.testing.assert_close(layer.weight.square().sum(), energy)
        torch.testing.assert_close(
            layer.weight[0], torch.linalg.matrix_norm(w, ord=2).max(), rtol=1e-9, atol=0
        )
        assert (layer.weight.diff() <= 0).all()
        assert len(layer.weight) == w.shape[0] * min(w.shape[1:])


def test_what_is_left_is_the_error_of_the_layer_of_that_rank():
    model, x = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 7)), draw(200, 12)
    stats = bz.collect(model, [x])
    for layer in spectra(model, stats).layers:
        objective = Objective(linear_map(model.get_submodule(layer.layer)), stats[layer.layer])
        ranks = range(1, len(layer.passed))
        tails = [float(layer.passed[r:].square().sum()) for r in ranks]
        assert make_method("lowrank").errors(objective, list(ranks)) == pytest.approx(tails)
        r = layer.rank_within(0.5)
        assert tails[r - 1] <= 0.25 * objective.energy < ([objective.energy, *tails])[r - 1]


def test_inputs_on_a_plane_have_two_directions():
    model, x = nn.Sequential(nn.Linear(9, 5, bias=False)), draw(300, 2) @ draw(2, 9, seed=1)
    (layer,) = spectra(model, bz.collect(model, [x])).layers
    assert layer.inputs is not None
    moment = x.double().T @ x.double() / len(x)
    torch.testing.assert_close(
        layer.inputs, torch.linalg.eigvalsh(moment).flip(0).clamp(min=0), rtol=1e-5, atol=1e-5
    )
    assert effective_rank(layer.inputs) <= 2.001


def test_layers_that_were_not_reached_are_left_out():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    stats = bz.collect(model, [draw(10, 4)])
    assert [layer.layer for layer in spectra(model, {"1": stats["1"]}).layers] == ["1"]


def test_rows_and_figure_name_every_layer():
    from matplotlib.figure import Figure

    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 3))
    found = spectra(model, bz.collect(model, [draw(30, 8)]))
    rows = found.rows()
    assert [row["layer"] for row in rows] == ["0", "1"]
    assert [(row["shape"], row["rank"]) for row in rows] == [("6×8", 6), ("3×6", 3)]
    ax = Figure().subplots()
    found.figure(ax)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["0", "1"]
    curves = [line for line in ax.lines if len(line.get_xdata()) > 2]
    assert len(curves) == 4
    for line in curves:  # each falls from all of the error to none
        heights = line.get_ydata()
        assert heights[0] - heights[-1] == pytest.approx(-0.85)


def test_statistics_of_another_model_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    stats = bz.collect(model, [draw(9, 4)])
    with pytest.raises(ValueError, match=r"layers \['0'\]; got those of \['other'\]"):
        spectra(model, {"other": stats["0"]})
