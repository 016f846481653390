"""A layer of which a module above it reads a part stays a layer that has one."""

import gc
import weakref

import torch
from torch import Tensor, nn

import bozzetto as bz
from bozzetto.reading import read_layers


class Careful(nn.Module):
    """Casts to the type of a child's weight, as T5 does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 48), nn.Linear(48, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).to(self.second.weight.dtype))


def test_it_is_left_dense_and_the_plan_says_why():
    model = nn.Sequential(nn.Linear(24, 24), Careful())
    assert read_layers(model) == {"1.second"}
    x = torch.randn(60, 24, generator=torch.Generator().manual_seed(0))
    small, plan = bz.compress(model, 0.7, [x])
    assert plan.dense["1.second"] == "a module above it reads its weight or sizes"
    assert "1.first" in plan.choices
    assert small(x).shape == (60, 24)


def test_torch_s_own_modules_are_known():
    assert read_layers(nn.TransformerEncoderLayer(16, 2, 32)) == set()


def test_a_module_without_source_is_taken_at_its_word():
    kind = type("Typed", (nn.Module,), {"forward": eval("lambda self, x: x")})
    assert read_layers(kind()) == set()


def test_what_is_read_from_further_up_counts_too():
    class Above(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 3))
            self.inner.table = nn.Embedding(4, 3)
            self.other = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.other(x)[: self.inner.table.num_embeddings]

    assert read_layers(nn.ModuleDict({"top": Above()})) == {"top.inner.table"}


def test_a_class_that_was_read_can_be_forgotten() -> None:
    def made() -> weakref.ref[type[nn.Module]]:
        class Local(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x

        assert read_layers(Local()) == set()
        return weakref.ref(Local)

    kind = made()
    gc.collect()
    assert kind() is None
