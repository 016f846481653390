"""The dense layer that stands for a small one, against the small one's own outputs."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import bozzetto as bz
from bozzetto.linalg import random_normal, seeded
from bozzetto.maps import linear_map
from bozzetto.methods import make_method
from bozzetto.nn import Folded, for_inference, inference
from bozzetto.nn.dense import dense_twin

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(24, 20), (5, 24)),
    "conv": (lambda: nn.Conv2d(12, 16, 3, 2, 1, dilation=2), (2, 12, 9, 8)),
    "reflecting": (lambda: nn.Conv1d(12, 16, 3, padding=2, padding_mode="reflect"), (2, 12, 9)),
    "1x1": (lambda: nn.Conv2d(24, 20, 1, bias=False), (2, 24, 3, 4)),
    "1x1 that strides": (lambda: nn.Conv2d(24, 20, 1, stride=2), (2, 24, 5, 4)),
}
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "low rank": ("lowrank", {}),
    "Tucker": ("tucker", {}),
    "blocks": ("blocks", {}),
    "fold in": ("sketched", {"sides": "in"}),
    "fold out": ("sketched", {"sides": "out"}),
    "both": ("sketched", {"sides": "both", "terms": 2}),
    "dense signs": ("sketched", {"sides": "both", "family": "sign"}),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return random_normal(seed, torch.Size(shape).numel()).view(shape).float()


def small(layer: nn.Module, form: str) -> nn.Module:
    name, options = FORMS[form]
    method, m = make_method(name, options), linear_map(layer)
    return method.build(m, method.most(m, 0.6), 3).eval()


def built(name: str) -> tuple[nn.Module, Tensor]:
    make, shape = LAYERS[name]
    with seeded(0, torch.device("cpu")):
        return make(), normal(*shape)


PAIRS = [
    (name, form) for name in LAYERS for form in FORMS
    if form != "Tucker" or name in ("conv", "reflecting")  # it is for several taps
]  # fmt: skip


@pytest.mark.parametrize(("name", "form"), PAIRS)
def test_the_twin_gives_the_outputs_of_the_small_layer(name: str, form: str) -> None:
    dense, x = built(name)
    layer = small(dense, form)
    twin = dense_twin(layer)
    assert twin is not None
    assert type(twin) is type(dense)
    assert repr(twin) == repr(dense)
    assert not twin.training
    assert_close(twin(x), layer(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sides", ["in", "out", "both"])
def test_sketches_of_whole_patches_have_a_twin_too(sides: Any) -> None:
    layer = bz.nn.SketchConv2d(6, 8, 3, 2, padding=1, form="joint", sides=sides)
    twin, x = dense_twin(layer), normal(2, 6, 5, 5)
    assert twin is not None
    assert_close(twin(x), layer(x), atol=1e-5, rtol=1e-4)


def test_a_chain_of_plain_layers_with_biases_is_one() -> None:
    with seeded(0, torch.device("cpu")):
        chain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 2, 1))
    twin, x = dense_twin(chain), normal(2, 3, 6, 6)
    assert repr(twin) == "Conv2d(3, 2, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))"
    assert twin is not None
    assert_close(twin(x), chain(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(3, 3),
        nn.Sequential(nn.Linear(3, 3), nn.ReLU()),
        nn.Sequential(nn.Conv1d(4, 4, 3), nn.Conv1d(4, 4, 3)),  # five taps, not three
        nn.Sequential(nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 3, padding=1)),  # a bias, then zeros
        nn.Sequential(nn.Conv1d(4, 4, 1, groups=2), nn.Conv1d(4, 4, 1)),
        nn.Sequential(nn.ConvTranspose1d(4, 4, 3), nn.Conv1d(4, 4, 1)),
        bz.nn.SketchConvTranspose2d(4, 6, 3, 1),
        bz.nn.SketchConv2d(8, 8, 3, 1, groups=2),
        bz.nn.SketchEmbedding(30, 8, 2, sides="out"),
        nn.Sequential(),
    ],
    ids=lambda layer: str(layer).split("(")[0],
)
def test_what_is_no_chain_of_plain_linear_maps_has_none(layer: nn.Module) -> None:
    assert dense_twin(layer) is None


def network() -> nn.Module:
    with seeded(1, torch.device("cpu")):
        conv = small(nn.Conv2d(8, 8, 3, padding=1), "low rank")
        return nn.Sequential(
            bz.nn.SketchConv2d(3, 8, 3, 1, padding=1), nn.BatchNorm2d(8), nn.ReLU(), conv, conv,
            nn.Flatten(), bz.nn.SketchLinear(8 * 16, 12, 2),
        ).eval()  # fmt: skip


@pytest.mark.parametrize("quick", ["dense", "small"])
def test_for_inference_takes_whichever_is_quicker(
    quick: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []

    def faster(runs: dict[str, Any], x: Any) -> str:
        seen.append(set(runs))
        return quick if quick in runs else next(iter(runs))

    monkeypatch.setattr(inference, "_faster", faster)
    model, x = network(), normal(2, 3, 4, 4)
    before = copy.deepcopy(model.state_dict())
    made = for_inference(model, x)
    assert seen.count({"small", "dense"}) == 3  # the shared layer once
    small_ones = [m for m in made.modules() if isinstance(m, Folded | nn.Sequential)]
    assert len(small_ones) == (1 if quick == "dense" else 4)
    assert not [m for m in made.modules() if isinstance(m, nn.BatchNorm2d)]
    assert_close(made(x), model(x), atol=1e-5, rtol=1e-4)
    assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


class Doubled(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Negated(bz.nn.SketchLinear):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


def replaced() -> nn.Module:
    chain = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    chain[0].forward = lambda x: torch.zeros(len(x), 5)
    return chain


@pytest.mark.parametrize(
    "build",
    [lambda: Doubled(nn.Linear(6, 5), nn.Linear(5, 4)), lambda: Negated(6, 5, 1), replaced],
    ids=["chain", "sketched", "replaced"],
)
def test_what_has_a_forward_of_its_own_is_left_alone(build: Any) -> None:
    layer, x = build().eval(), normal(3, 6)
    assert dense_twin(layer) is None
    assert_close(for_inference(nn.Sequential(layer, nn.ReLU()), x)(x), layer(x).relu())
