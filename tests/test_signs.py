"""Layers of signs: their bits, their file, and what torch does to modules."""

import copy

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

import bozzetto as bz
from bozzetto.nn import Signs
from bozzetto.nn.parts import map_order
from bozzetto.nn.signs import pack_signs, unpack_signs
from bozzetto.prices import count_bytes
from networks import NETWORKS

LAYERS = {
    "linear": (lambda: nn.Linear(13, 6), torch.Size((4, 13))),
    "convolution": (lambda: nn.Conv2d(8, 6, 3, groups=2, padding="same"), torch.Size((2, 8, 5, 5))),
    "transposed": (lambda: nn.ConvTranspose1d(8, 6, 4, stride=2), torch.Size((2, 8, 5))),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def made(name: str, seed: int = 0) -> tuple[Signs, Tensor]:
    build, shape = LAYERS[name]
    return Signs(build(), seed), torch.randn(shape)


def weight(layer: Signs) -> Tensor:
    return layer.layer.get_buffer("weight")


def assert_same(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 64, 1001])
def test_packing_keeps_every_sign_in_an_eighth_of_a_byte(count: int) -> None:
    values = torch.randn(count)
    bits = pack_signs(values)
    assert (bits.dtype, bits.shape) == (torch.uint8, (-(-count // 8),))
    assert_same(unpack_signs(bits, count).float(), values.sign())


def test_the_bits_are_pinned() -> None:
    assert pack_signs(torch.tensor([-1.0, 1, 1, -1, 1, 1, 1, 1, -1])).tolist() == [9, 1]
    assert Signs(nn.Linear(8, 4, bias=False), seed=7).bits.tolist() == [229, 82, 85, 27]


@every_layer
def test_all_weights_have_one_size_a_power_of_two_near_the_unit_row(name: str) -> None:
    layer, _ = made(name)
    fan_in = {"linear": 13, "convolution": 36, "transposed": 16 * 4 // 4}[name]
    assert_same(weight(layer).abs(), torch.full_like(weight(layer), layer.scale))
    assert 2**-0.5 <= layer.scale * fan_in**0.5 <= 2**0.5


@every_layer
def test_a_layer_applies_the_signs_that_it_was_given(name: str) -> None:
    layer, x = made(name)
    plain = LAYERS[name][0]()
    with torch.no_grad():
        plain.weight.copy_(
            weight(layer) * torch.where(torch.rand(weight(layer).shape) < 0.5, -1, 1)
        )
        plain.bias.copy_(layer.layer.bias)
    layer.set_(map_order(plain, plain.weight.detach()))
    torch.testing.assert_close(layer(x), plain(x))


@every_layer
def test_the_state_holds_bits_and_a_bias_and_gives_the_layer_back(name: str) -> None:
    layer, x = made(name, seed=1)
    state = load(save(layer.state_dict()))
    assert set(state) == {"bits", "layer.bias"}
    assert count_bytes(layer) == -(-weight(layer).numel() // 8) + 4 * len(state["layer.bias"])
    for assign in (False, True):
        other, _ = made(name, seed=2)
        assert not (weight(other) == weight(layer)).all()
        other.load_state_dict(state, assign=assign)
        assert_same(other(x), layer(x))


@every_layer
def test_a_layer_on_the_meta_device_counts_the_same_and_comes_to_life_by_its_state(
    name: str,
) -> None:
    layer, x = made(name, seed=1)
    with torch.device("meta"):
        empty, _ = made(name, seed=1)
    assert all(t.is_meta for t in [*empty.parameters(), *empty.buffers()])
    assert count_bytes(empty) == count_bytes(layer)
    empty.to_empty(device="cpu").load_state_dict(layer.state_dict())
    assert_same(empty(x), layer(x))


@every_layer
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_precision_holds_the_signs_exactly(name: str, dtype: torch.dtype) -> None:
    layer, x = made(name)
    moved = copy.deepcopy(layer).to(dtype)
    assert_same(weight(moved).float(), weight(layer))
    assert moved.bits.dtype == torch.uint8
    assert moved(x.to(dtype)).dtype == dtype


@every_layer
def test_autocast_copies_and_gradients_work(name: str) -> None:
    layer, x = made(name)
    x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    copy.deepcopy(layer)(x).sum().backward()
    assert x.grad is not None
    assert [name for name, _ in layer.named_parameters()] == ["layer.bias"]


@every_layer
def test_a_layer_exports_and_compiles_into_one_graph(name: str) -> None:
    layer, x = made(name)
    torch.compiler.reset()
    program = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(program(x), layer(x))
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))


def test_the_padding_row_of_an_embedding_is_zero_whatever_its_bits() -> None:
    layer = Signs(nn.Embedding(10, 4, padding_idx=3))
    layer.set_(torch.ones(4, 10))
    rows = layer(torch.arange(10))
    assert_same(rows[3], torch.zeros(4))
    assert (rows[[0, 9]] == layer.scale).all()


def test_an_embedding_and_a_head_of_one_weight_share_their_signs() -> None:
    model, x = NETWORKS["language_model"]()
    small, plan = bz.compress(model, 0.65, [x], methods="signs", layers="head")
    assert (plan.choices["head"].method, plan.tied) == ("signs", {"embedding": "head"})
    applied = small.get_submodule("head")(torch.eye(24))  # (24, vocabulary)
    torch.testing.assert_close(small.get_submodule("embedding")(x), applied.T[x])
    assert count_bytes(small) == plan.small["bytes"]
