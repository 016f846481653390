"""transformers' Conv1D as nn.Linear, without the library: a stand-in with its attributes."""

import subprocess
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.testing import assert_close

from bozzetto import hf
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
    hf.register()


def test_nothing_happens_before_transformers_is_loaded():
    code = (
        "import sys\nfrom bozzetto import hf\nfrom bozzetto.maps import expand_one\n"
        "before = dict(expand_one.registry)\nhf.register()\n"
        "assert expand_one.registry == before\nassert 'transformers' not in sys.modules"
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
    assert_close(twin.weight.grad, source.weight.grad.T)
    with torch.no_grad():
        twin.weight.zero_()
        twin.bias.zero_()
    assert_close(dict(source.state_dict()), before, rtol=0, atol=0)


@pytest.mark.usefixtures("_loaded")
def test_registering_again_changes_nothing():
    before = dict(expand_one.registry)
    hf.register()
    assert dict(expand_one.registry) == before
    assert Conv1D in before


@pytest.mark.usefixtures("_loaded")
def test_what_is_not_exactly_conv1d_stays_as_it_is():
    class Own(Conv1D):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    pruned, hooked = Conv1D(5, 3), Conv1D(5, 3)
    prune.l1_unstructured(pruned, "weight", 0.5)
    hooked.register_forward_hook(lambda _, __, out: out + 1)
    for module in (Own(5, 3), pruned, hooked):
        assert expand_one(module) is module
