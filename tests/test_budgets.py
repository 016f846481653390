"""What bounds a network: bytes, measured latency, several at once, a floor under its quality."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import bozzetto as bz
from bozzetto import prices
from bozzetto.analysis.latency import latency
from bozzetto.compress import survey
from bozzetto.knapsack import Unreachable
from bozzetto.prices import count_flops
from bozzetto.timely import timed
from bozzetto.timing import Sample

Network = tuple[nn.Module, Tensor]


def held(model: nn.Module) -> int:
    """Bytes of what a saved file holds, tied tensors once."""
    tensors = {t.data_ptr(): t for t in model.state_dict().values()}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def wide(n: int = 192) -> tuple[nn.Module, list[Tensor]]:
    """Wide layers of falling spectra, and inputs."""
    layers = [nn.Linear(n, n) for _ in range(3)]
    for layer in layers:
        u, s, vh = torch.linalg.svd(layer.weight.detach())
        layer.weight.data = (u * s * torch.arange(1, n + 1) ** -0.7 * 8) @ vh
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).eval(), [
        torch.randn(128, n) for _ in range(2)
    ]


def fidelity(model: nn.Module, batches: list[Tensor]) -> Callable[[nn.Module], Tensor]:
    """One less the relative error of the output."""
    with torch.no_grad():
        wanted = torch.cat([model(x) for x in batches])

    def metric(network: nn.Module) -> Tensor:
        got = torch.cat([network(x) for x in batches])
        return 1 - (got - wanted).norm() / wanted.norm()

    return metric


def test_a_bound_on_bytes_is_met_as_counted_on_the_delivered_network(network: Network) -> None:
    model, x = network
    small, plan = bz.compress(model, bz.Budget(bytes=0.7), [x])
    assert held(small) <= 0.7 * held(model)
    assert plan.small["bytes"] == held(small)
    assert plan.target["bytes"] == held(model)


def test_half_precision_holds_half_the_bytes() -> None:
    model, batches = wide()
    half = model.bfloat16()
    _, plan = bz.compress(half, 0.5, [x.bfloat16() for x in batches])
    assert plan.small["bytes"] == 2 * plan.small["params"]


def test_several_bounds_hold_together() -> None:
    model, batches = wide()
    _, plan = bz.compress(model, bz.Budget(params=0.5, flops=0.4, bytes=0.45), batches)
    for resource, bound in {"params": 0.5, "flops": 0.4, "bytes": 0.45}.items():
        assert plan.kept(resource) <= bound
    assert max(plan.kept(r) for r in ("params", "flops", "bytes")) > 0.38


def by(seconds: Callable[[Callable[[], object]], float]) -> Callable[..., dict[str, list[Sample]]]:
    """A clock that shows these seconds for a call."""

    def sample(calls: Mapping[str, Callable[[], object]], *_: object) -> dict[str, list[Sample]]:
        return {name: [Sample(seconds(run), seconds(run))] for name, run in calls.items()}

    return sample


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which a call takes as long as its operations, and a little more."""

    monkeypatch.setattr(prices, "sample_clocks", by(lambda run: 2e-5 + 1e-9 * count_flops(run)))


@pytest.mark.usefixtures("steady")
def test_a_bound_on_latency_is_met_by_the_network_though_layers_do_not_add_up() -> None:
    model, batches = wide()
    _, plan = bz.compress(model, bz.Budget(latency=0.6), batches)
    assert 0.5 < plan.kept("latency") <= 0.6
    assert all(choice.latency for choice in plan.choices.values())
    # The sum of the layers' times, of which each has the little more, is another number.
    assert sum(c.latency or 0 for c in plan.choices.values()) != plan.small["latency"]


def test_a_forecast_agrees_with_networks_in_which_layers_take_longer_than_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def sample(calls: Mapping[str, Callable[[], object]], *_: object) -> dict[str, list[Sample]]:
        slower = {"target": 1.5, "half": 1.5, "small": 1.5}  # whole networks
        times = {n: slower.get(n, 1) * (1e-4 + 1e-9 * count_flops(f)) for n, f in calls.items()}
        return {name: [Sample(seconds, seconds)] for name, seconds in times.items()}

    monkeypatch.setattr(prices, "sample_clocks", sample)
    model, batches = wide()
    made = survey(model, batches, methods=("lowrank",), timed=True)
    for keep in (0.7, 0.4):
        plan = made.menu.choose(bz.Budget(flops=keep))
        measured = timed(plan, model, batches[0]).kept("latency")
        assert abs(plan.kept("latency") - measured) < 0.01
        assert all(choice.latency for choice in plan.choices.values())


def test_a_bound_on_latency_is_one_on_the_clock() -> None:
    model, batches = wide(512)
    small, plan = bz.compress(model, bz.Budget(latency=0.8), batches)
    assert plan.kept("latency") <= 0.8
    assert plan.kept("flops") < 1
    again = latency({"target": model, "small": small}, batches[0])
    target, kept = (min(again.seconds[name]) for name in ("target", "small"))
    assert kept < target


def test_a_latency_out_of_reach_is_told() -> None:
    model, batches = wide()
    with pytest.raises(Unreachable, match=r"0\.0001 of the latency"):
        bz.compress(model, bz.Budget(latency=0.0001), batches)


def test_the_smallest_network_that_reaches_a_floor_is_found() -> None:
    model, batches = wide()
    metric = fidelity(model, batches)
    small, plan = bz.compress(model, 1.0, batches, floor=0.8, metric=metric)
    assert metric(small) >= 0.8
    smaller, _ = bz.compress(model, 0.95 * plan.kept(), batches)
    assert metric(smaller) < 0.8


def test_a_floor_shrinks_every_bound_of_the_budget() -> None:
    model, batches = wide()
    budget = bz.Budget(params=0.9, flops=0.5)
    _, plan = bz.compress(model, budget, batches, floor=0.8, metric=fidelity(model, batches))
    assert plan.kept("flops") < 0.5
    assert plan.kept("params") < 0.9


def test_a_floor_above_the_target_is_told() -> None:
    model, batches = wide()
    with pytest.raises(Unreachable, match=r"the target itself is below the floor 1\.5: it has 1"):
        bz.compress(model, 1.0, batches, floor=1.5, metric=fidelity(model, batches))


def test_a_floor_that_the_budget_rules_out_reports_what_was_reached() -> None:
    model, batches = wide()
    with pytest.raises(Unreachable, match=r"params=0\.05.* reaches 0\.99: got 0\."):
        bz.compress(model, 0.05, batches, floor=0.99, metric=fidelity(model, batches))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (float("nan"), ValueError, "got NaN"),
        (torch.ones(3), TypeError, r"one number.*got \(3,\)"),
        ("high", TypeError, "one number.*got str"),
        (None, TypeError, "one number.*got NoneType"),
    ],
)
def test_a_metric_that_gives_no_number_is_refused(
    value: object, error: type[Exception], message: str
) -> None:
    model, batches = wide()
    with pytest.raises(error, match=message):
        bz.compress(model, 1.0, batches, floor=0.5, metric=lambda _: value)


def test_a_floor_needs_a_metric() -> None:
    model, batches = wide()
    with pytest.raises(ValueError, match="a floor and a metric go together"):
        bz.compress(model, 1.0, batches, floor=0.5)


def test_the_target_is_untouched_by_timing_and_searching(network: Network) -> None:
    model, x = network
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [m.training for m in model.modules()]
    bz.compress(model, bz.Budget(latency=1.0), [x], floor=-1.0, metric=lambda _: 0.0)
    assert flags == [m.training for m in model.modules()]
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
        return func(*args, **(kwargs or {}))


def a_while_each(product: float) -> Callable[..., dict[str, list[Sample]]]:
    """A clock on which every matrix product takes a while more, whatever its size."""

    def seconds(run: Callable[[], object]) -> float:
        with torch.no_grad(), Products() as products:
            run()
        return product * products.count + 1e-9 * count_flops(run)

    return by(seconds)


def test_a_layer_is_not_made_smaller_where_that_takes_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prices, "sample_clocks", a_while_each(1e-4))
    model, batches = wide()
    narrow = nn.Sequential(model, nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    _, plan = bz.compress(narrow, bz.Budget(latency=0.7), batches, methods=("lowrank",))
    assert plan.kept("latency") <= 0.7
    assert plan.choices
    assert set(plan.choices) <= {"0.0", "0.2", "0.4"}  # what is wide enough to gain
    assert {"1", "3"} <= set(plan.dense)


def test_a_bound_on_latency_keeps_a_network_of_few_values_from_being_slower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prices, "sample_clocks", a_while_each(5e-3))
    model, batches = wide()
    small, _ = bz.compress(model, 0.5, batches, methods=("lowrank",))
    times = prices.time_models({"target": model, "small": small}, batches[0])
    assert times["small"] > times["target"]  # two products each take longer than they save
    budget = bz.Budget(params=0.5, latency=1.0)
    quick, plan = bz.compress(model, budget, batches, methods=("lowrank",))
    times = prices.time_models({"target": model, "quick": quick}, batches[0])
    assert times["quick"] <= times["target"]
    assert plan.kept("params") <= 0.5


def test_a_plan_takes_a_fraction_as_well_as_a_budget() -> None:
    model, x = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)), torch.randn(64, 16)
    stats = bz.collect(model, [x])
    assert bz.plan(model, stats, 0.5) == bz.plan(model, stats, bz.Budget(params=0.5))
