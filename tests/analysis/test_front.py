"""The front of size against quality."""

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

import bozzetto as bz
from bozzetto.analysis.front import front


def networks() -> tuple[nn.Module, dict[str, nn.Module], list[torch.Tensor]]:
    model = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 24)).eval()
    batches = [torch.randn(32, 24), torch.randn(16, 24)]
    small = {str(keep): bz.compress(model, keep, batches)[0] for keep in (0.5, 0.25)}
    return model, small, batches


def test_it_measures_what_it_says() -> None:
    model, small, batches = networks()
    made = front(
        model, small, batches, metrics={"values": lambda net: float(len(list(net.parameters())))}
    )
    with torch.no_grad():
        theirs = torch.cat([model(x) for x in batches])
        ours = torch.cat([small["0.5"](x) for x in batches])
    target, half, quarter = made.points
    assert half.error == pytest.approx(float((ours - theirs).norm() / theirs.norm()))
    assert half.params == sum(p.numel() for p in small["0.5"].parameters())
    assert half.params_kept == half.params / target.params
    assert target.quality == {"values": 4.0}
    assert target.error == 0 < half.error < quarter.error
    assert [row["network"] for row in made.rows()] == ["target", "0.5", "0.25"]


def test_it_can_show_itself() -> None:
    made, (figure, ax) = front(*networks()), plt.subplots()
    made.figure(ax)
    values, operations, target = ax.lines
    assert list(values.get_xdata()) == sorted(p.params_kept for p in made.points[1:])
    assert list(operations.get_xdata()) == sorted(p.flops_kept for p in made.points[1:])
    assert list(target.get_ydata()) == [1.0, 1.0]
    plt.close(figure)


def test_networks_with_other_outputs_are_refused() -> None:
    model, _, batches = networks()
    with pytest.raises(ValueError, match=r"target gives \[\(32, 24\)\], got \[\(32, 5\)\]"):
        front(model, {"other": nn.Linear(24, 5)}, batches)


def test_it_needs_networks_and_batches() -> None:
    model, small, _ = networks()
    with pytest.raises(ValueError, match="needs networks and batches; got 2, 0"):
        front(model, small, [])


def test_names_that_would_hide_others_are_refused() -> None:
    model, batches = nn.Linear(2, 2), [torch.ones(1, 2)]
    with pytest.raises(ValueError, match="target"):
        front(model, {"target": nn.Linear(2, 2)}, batches)
    with pytest.raises(ValueError, match="error"):
        front(model, {"small": model}, batches, metrics={"error": lambda net: 1.0})
