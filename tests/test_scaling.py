"""Planning by counts: networks too large to hold."""

import torch
from torch import nn

import bozzetto as bz
from bozzetto.prices import count_params


def test_a_network_of_a_thousand_million_values_is_planned_by_counts_without_data() -> None:
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(8192, 8192, bias=False) for _ in range(16)))
    assert count_params(model) > 1e9
    small, plan = bz.sketch(model, 0.25, sides="in", ends="sketched")
    assert all(p.is_meta for p in small.parameters())
    assert 0.249 < plan.kept() <= 0.25
    assert count_params(small) == plan.small["params"]
