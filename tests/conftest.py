from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from bozzetto.methods import METHODS
from bozzetto.sketch import FAMILIES
from networks import NETWORKS


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """Pages, examples and tests may register sketches and methods of their own."""
    known = dict(FAMILIES), dict(METHODS)
    yield
    for registry, before in zip((FAMILIES, METHODS), known, strict=True):
        cast(dict[str, Any], registry).clear()
        cast(dict[str, Any], registry).update(before)


@pytest.fixture(autouse=True)
def _generator_state() -> Iterator[None]:
    """Every test starts from one state of torch's generator and leaves the next one its own."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


@pytest.fixture(params=list(NETWORKS))
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    """A target network in evaluation mode, and an input for it."""
    model, x = NETWORKS[request.param]()
    return model.eval(), x
