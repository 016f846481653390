"""The contracts of maps and methods, over every kind of layer and the whole registry."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import bozzetto as bz
from bozzetto.maps import linear_map
from bozzetto.methods import METHODS, make_method
from bozzetto.testing import check_map, check_method

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(24, 16),
    "wide linear": lambda: nn.Linear(12, 40, bias=False),
    "one output": lambda: nn.Linear(24, 1),
    "conv1d": lambda: nn.Conv1d(8, 12, 5, padding="same"),
    "strided conv": lambda: nn.Conv2d(6, 10, 3, stride=2, padding=1, bias=False),
    "grouped dilated conv": lambda: nn.Conv2d(8, 12, (3, 2), dilation=2, groups=2),
    "depthwise conv": lambda: nn.Conv2d(8, 8, 3, groups=8),
    "pointwise conv": lambda: nn.Conv2d(12, 16, 1),
    "volume conv": lambda: nn.Conv3d(4, 6, 2, padding_mode="circular", padding=1),
    "transposed conv": lambda: nn.ConvTranspose2d(8, 12, 3, stride=2, output_padding=1, groups=2),
    "dilated transposed conv": lambda: nn.ConvTranspose1d(
        8, 12, 4, stride=3, padding=2, dilation=2, bias=False
    ),
    "circular conv": lambda: nn.Conv2d(8, 6, 3, padding="same", padding_mode="circular"),
    "reflecting conv": lambda: nn.Conv2d(8, 6, 3, padding=2, padding_mode="reflect", bias=False),
    "embedding": lambda: nn.Embedding(40, 12),
    "padded embedding": lambda: nn.Embedding(40, 12, padding_idx=3),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


@every_layer
def test_a_layer_keeps_the_contract_of_maps(name: str) -> None:
    check_map(LAYERS[name]())


def test_an_input_without_a_batch_is_mapped_too() -> None:
    check_map(nn.Conv1d(8, 12, 5, padding="same"), torch.randn(8, 9))
    check_map(nn.Linear(12, 20), torch.randn(12))


@every_layer
@pytest.mark.parametrize("method", METHODS)
def test_a_method_keeps_its_contract_on_every_layer(name: str, method: str) -> None:
    check_method(make_method(method), linear_map(LAYERS[name]()))


@pytest.mark.parametrize("methods", [["lowrank", "tucker"], "signs", "hybrid", "sketched"])
@pytest.mark.parametrize("inputs", ["drawn", "constant", "scaled"])
def test_a_network_with_dead_channels_keeps_its_outputs(methods: Any, inputs: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(6, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Conv2d(24, 8, 3)
    ).eval()
    with torch.no_grad():
        model[0].bias[::2] = -1e4  # never awake
    x = torch.randn(20, 6, 9, 9)
    if inputs == "constant":
        x = torch.ones_like(x)
    if inputs == "scaled":
        size = 10.0 ** torch.arange(-3, 3).view(6, 1, 1)
        x = x * size
        with torch.no_grad():
            model[0].weight.div_(size)
    small, _ = bz.compress(model, 0.6, [x], methods=methods)
    got, want = small(x), model(x)
    off = (got - want).square().mean()
    about = (want - want.mean((0, 2, 3), keepdim=True)).square().mean() + 1e-8
    assert off < 0.5 * about
