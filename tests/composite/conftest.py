"""A twin of a module, with the promise checked that making and using it leaves no trace."""

import hashlib
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import bozzetto.composite  # noqa: F401  (registers the twins)
from bozzetto.maps import expand_one


def digest(module: nn.Module) -> str:
    """Of every stored value and its name."""
    state = module.state_dict().items()
    lines = [f"{name} {v.dtype} {v.detach().double().flatten().tolist()}" for name, v in state]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def structure(module: nn.Module) -> list[tuple[object, ...]]:
    """The parts of a module and their flags."""
    parts = [(path, id(part), part.training) for path, part in module.named_modules()]
    return parts + [(name, id(p), p.requires_grad) for name, p in module.named_parameters()]


@pytest.fixture
def twin_of() -> Iterator[Callable[[nn.Module], nn.Module]]:
    """`expand_one`, checked: making a twin changes nothing, using it no value of the original."""
    given: list[tuple[nn.Module, str]] = []

    def make(module: nn.Module) -> nn.Module:
        given.append((module, digest(module)))
        random, parts = torch.get_rng_state(), structure(module)
        twin = expand_one(module)
        assert (torch.get_rng_state() == random).all()
        assert structure(module) == parts
        return twin

    yield make
    assert given
    for module, before in given:
        assert digest(module) == before


@pytest.fixture
def fill() -> Callable[..., nn.Module]:
    """Give every parameter values of a seed, none of them zero (torch starts biases at zero)."""

    def draw(module: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        return module

    return draw
