"""Fitted factors are of like size, so that they can be trained on."""

import pytest
import torch
from torch import nn

import bozzetto as bz
from bozzetto.linalg import seeded


def badly_scaled(conv: bool) -> tuple[nn.Module, torch.Tensor]:
    """A layer whose inputs are tiny and whose output is amplified behind it."""
    with seeded(0, torch.device("cpu")):
        if conv:
            first, last = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 8, 1)
            x = torch.randn(8, 16, 9, 9)
        else:
            first, last = nn.Linear(48, 64), nn.Linear(64, 8)
            x = torch.randn(200, 48)
        with torch.no_grad():
            last.weight.mul_(300)
        return nn.Sequential(first, nn.ReLU(), last).eval(), 1e-3 * x


@pytest.mark.parametrize("method", ["lowrank", "tucker", "hybrid"])
def test_gradients_of_all_factors_are_of_like_size(method: str) -> None:
    model, x = badly_scaled(conv=method == "tucker")
    small, plan = bz.compress(model, 0.5, [x], methods=[method], layers=["0"])
    assert plan.choices["0"].method == method
    layer = small.get_submodule("0")
    y = layer(torch.randn_like(x))
    y.square().mean().backward()
    ratios = [
        float(p.grad.norm() / p.detach().norm())
        for p in layer.parameters()
        if p.grad is not None and p.ndim > 1
    ]
    assert len(ratios) >= 2
    assert max(ratios) < 10 * min(ratios)
