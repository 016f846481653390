"""Moments gathered a group of layers at a time against all of them at once."""

from importlib import import_module
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import bozzetto as bz
from bozzetto import grouped
from bozzetto.expand import expand
from bozzetto.grouped import GroupedStats, moment_bytes
from bozzetto.stats import layer_maps
from networks import NETWORKS

compressing = import_module("bozzetto.compress")


class Tied(nn.Module):
    """A look-up and a head of one weight, far from each other."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body = nn.Embedding(20, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.table(x)))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The layers of every pass over the batches."""
    found: list[list[str]] = []

    def counted(*args: Any, paths: list[str], **others: Any) -> Any:
        found.append(paths)
        return bz.collect(*args, paths=paths, **others)

    monkeypatch.setattr(grouped, "collect", counted)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_of_one_layer_have_the_moments_of_all_at_once(name: str) -> None:
    model, x = NETWORKS[name]()
    whole, parts = bz.collect(model, [x]), GroupedStats(model, [x], most=1)
    assert set(parts) == set(whole)
    for path, stats in parts.items():
        assert vars(stats).keys() == vars(whole[path]).keys()
        assert_close(vars(stats), vars(whole[path]), rtol=0, atol=0)


def test_layers_asked_for_in_order_cost_a_pass_a_group(passes: list[list[str]]) -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(6)))
    one = moment_bytes(layer_maps(model)["0"])
    stats = GroupedStats(model, [torch.randn(4, 8)], most=2 * one)
    assert passes == []
    for path in "001122334455":
        assert cast(Tensor, stats[path].moment).nbytes == one / 2
    assert passes == [["0", "1"], ["2", "3"], ["4", "5"]]
    assert "9" not in stats


def test_what_is_told_beforehand_is_what_moments_take() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 5))
    stats = bz.collect(model, [torch.randn(3, 4, 4, 4)])
    for path, m in layer_maps(model).items():
        own = cast(Tensor, stats[path].moment), cast(Tensor, stats[path].gradient)
        assert moment_bytes(m) == own[0].nbytes + own[1].nbytes


def test_layers_of_one_weight_are_of_one_group() -> None:
    groups = GroupedStats(Tied(), [torch.arange(20)[None]], most=1).groups
    assert groups == [["head", "table"], ["body.0"]]


def test_inputs_that_crash_do_so_in_every_group() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), torch.randn(9, 8)
    parts = GroupedStats(model, [x], most=1, robustness=0.2)
    for path, stats in bz.collect(model, [x]).items():
        assert_close(vars(parts[path]), vars(stats.crashed(0.2)))


@pytest.mark.parametrize("make", [lambda: (Tied(), torch.arange(20)[None]), NETWORKS["encoder"]])
def test_a_network_compressed_in_parts_is_the_one_compressed_at_once(
    make: Any, monkeypatch: pytest.MonkeyPatch, passes: list[list[str]]
) -> None:
    model, x = make()
    small, plan = bz.compress(model, 0.6, [x])
    assert len(passes) == 1
    monkeypatch.setattr(compressing, "_HELD", 1)
    monkeypatch.setattr(compressing, "count_bytes", lambda _: 1)
    again, made = bz.compress(model, 0.6, [x])
    assert len(passes) > len(layer_maps(expand(model)))  # planned, fitted, fitted again
    assert made == plan
    assert_close(dict(again.state_dict()), dict(small.state_dict()), rtol=0, atol=0)


def test_an_expansion_to_read_takes_the_memory_of_its_buffers_only() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Flatten())
    model[0].bias.requires_grad_(False)
    made = expand(model, weights="shared")
    for (name, own), (_, theirs) in zip(
        made.state_dict(keep_vars=True).items(), model.state_dict(keep_vars=True).items(),
        strict=True,
    ):  # fmt: skip
        assert own is not theirs
        assert own.requires_grad is theirs.requires_grad
        assert (own.data_ptr() == theirs.data_ptr()) == isinstance(theirs, nn.Parameter), name


def test_reading_leaves_the_models_flags_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).requires_grad_(False)
    bz.collect(model, [torch.randn(5, 3)])
    assert not any(p.requires_grad for p in model.parameters())
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert len(bz.collect(model, [torch.randn(5, 3)])) == 2
