"""Both clocks of a call, and the forms that the benchmark of layers compares."""

import time
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from bozzetto.timing import sample_clocks


def test_waiting_takes_the_walls_time_and_working_the_processors() -> None:
    def work() -> None:
        end = time.process_time() + 0.01
        while time.process_time() < end:
            pass

    found = sample_clocks({"wait": lambda: time.sleep(0.01), "work": work}, 3)
    assert all(s.wall >= 0.01 and s.process < 0.008 for s in found["wait"])
    assert all(s.process >= 0.01 and s.wall >= 0.0099 for s in found["work"])


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return import_module("layers")


@pytest.mark.parametrize(
    ("dense", "shape"),
    [(nn.Linear(48, 96), (5, 48)), (nn.Conv2d(32, 32, 3, padding=1), (2, 32, 4, 4))],
)
def test_every_form_that_is_timed_has_the_size_it_says(benchmark, dense, shape) -> None:
    forms = benchmark.forms(dense, 4)
    assert {"fold in", "fold out", "fold both", "lowrank", "four products"} <= set(forms)
    for name, layer in forms.items():
        assert layer(torch.randn(shape)).shape == dense(torch.randn(shape)).shape
        trained = sum(p.numel() for p in layer.parameters() if p.requires_grad)
        trained -= dense.bias.numel()
        if name not in ("dense", "signs"):
            assert trained <= dense.weight.numel() / 4


def test_the_four_products_are_the_papers_formula(benchmark) -> None:
    dense = nn.Linear(24, 16)
    layer, x = benchmark.FourProducts(dense, 3), torch.randn(5, 24)
    weight = (layer.u1t.weight @ layer.s1.weight + layer.s2.weight @ layer.u2.weight) / 2
    assert_close(layer(x), x @ weight.T + dense.bias)


def test_an_embeddings_floor_counts_only_the_rows_it_reads(benchmark) -> None:
    index = torch.tensor([[1, 2, 3]])
    floor = benchmark._floor(nn.Embedding(1000, 8), index)
    assert floor == (3 * 8 + 3 * 8 * 4 * 2, 0)
