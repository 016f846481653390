"""Layers of other libraries as nn.Linear: stand-ins with their attributes, and the real ones."""

import importlib
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.testing import assert_close

import bozzetto as bz
from bozzetto import foreign
from bozzetto.expand import expand
from bozzetto.maps import expand_one


class Conv1D(nn.Module):
    """What transformers.pytorch_utils.Conv1D is: y = x W + b with W (nx, nf)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        generator = torch.Generator().manual_seed(nf)
        self.weight = nn.Parameter(torch.randn(nx, nf, generator=generator))
        self.bias = nn.Parameter(torch.randn(nf, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], self.nf)
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(shape)


@pytest.fixture
def _loaded(monkeypatch: pytest.MonkeyPatch):
    """As if transformers had been imported and `expand` called."""
    home = ModuleType("transformers.pytorch_utils")
    home.Conv1D = Conv1D  # type: ignore
    monkeypatch.setitem(sys.modules, home.__name__, home)
    foreign.register()


def test_nothing_happens_before_a_library_is_loaded():
    code = (
        "import sys\nfrom bozzetto import foreign\nfrom bozzetto.maps import expand_one\n"
        "before = dict(expand_one.registry)\nforeign.register()\n"
        "assert expand_one.registry == before\n"
        "assert not {'transformers', 'torch_geometric'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.usefixtures("_loaded")
def test_it_becomes_an_exact_linear_layer():
    source = Conv1D(5, 3).double().eval()
    source.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in source.state_dict().items()}
    random = torch.get_rng_state()
    twin = expand_one(source)
    assert (torch.get_rng_state() == random).all()
    assert type(twin) is nn.Linear
    assert (twin.in_features, twin.out_features, twin.training) == (3, 5, False)
    assert (twin.weight.requires_grad, twin.bias.requires_grad) == (True, False)
    assert twin.weight.is_contiguous()
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(twin(x), source(x))
    twin(x).square().sum().backward()
    source(x).square().sum().backward()
    assert source.weight.grad is not None
    assert_close(twin.weight.grad, source.weight.grad.T)
    with torch.no_grad():
        twin.weight.zero_()
        twin.bias.zero_()
    assert_close(dict(source.state_dict()), before, rtol=0, atol=0)


@pytest.mark.usefixtures("_loaded")
def test_registering_again_changes_nothing():
    before = dict(expand_one.registry)
    foreign.register()
    assert dict(expand_one.registry) == before
    assert Conv1D in before


@pytest.mark.usefixtures("_loaded")
def test_what_is_not_exactly_conv1d_stays_as_it_is():
    class Own(Conv1D):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    pruned, hooked = Conv1D(5, 3), Conv1D(5, 3)
    prune.l1_unstructured(pruned, "weight", 0.5)
    hooked.register_forward_hook(lambda *told: None)
    for module in (Own(5, 3), pruned, hooked):
        assert expand_one(module) is module


def _geometric(name: str) -> Any:
    pytest.importorskip("torch_geometric")
    return getattr(importlib.import_module("torch_geometric.nn"), name)


@pytest.mark.parametrize("bias", [True, False])
def test_the_linear_layer_of_torch_geometric_becomes_the_very_same_map(bias: bool):
    source = _geometric("Linear")(7, 4, bias=bias)
    twin = expand(source)
    assert type(twin) is nn.Linear
    assert twin.state_dict().keys() == source.state_dict().keys()
    x = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    assert_close(twin(x), source(x), rtol=0, atol=0)


def test_a_linear_layer_of_torch_geometric_that_saw_no_batch_is_refused():
    source = _geometric("Linear")(-1, 4)
    with pytest.raises(ValueError, match="lazy layers need to see a batch first"):
        expand(source)
    source(torch.zeros(2, 7))
    assert expand(source).in_features == 7


@pytest.mark.parametrize("kind", ["GCNConv", "GATConv", "SAGEConv", "GINConv"])
def test_graph_convolutions_are_compressed_through_their_linear_layers(kind: str):
    made = _geometric(kind)
    layer = made(nn.Sequential(nn.Linear(32, 48))) if kind == "GINConv" else made(32, 48)
    random = torch.Generator().manual_seed(1)
    x = torch.randn(20, 32, generator=random)
    edges = torch.randint(20, (2, 60), generator=random)
    assert_close(expand(layer)(x, edges), layer(x, edges), rtol=0, atol=0)
    small, plan = bz.compress(layer, 0.5, [((x, edges), None)])
    assert plan.choices
    assert sum(p.numel() for p in small.parameters()) <= plan.target["params"] / 2
    whole, error = layer(x, edges), small(x, edges) - layer(x, edges)
    assert error.square().mean() < whole.square().mean()
