"""`sketch`: what each layer of the network to be trained gets, and what the whole costs."""

from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import bozzetto as bz
from bozzetto.knapsack import Unreachable
from bozzetto.maps import LinearMap
from bozzetto.methods import Blocks, SketchedMethod, make_method
from bozzetto.plan import Choice
from bozzetto.sites import find_sites
from bozzetto.sketch import FAMILIES
from networks import NETWORKS

Network = tuple[nn.Module, Tensor]


def values(model: nn.Module) -> int:
    return sum({id(p): p.numel() for p in model.parameters()}.values())


def flops(model: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops()


def mlp(*widths: int) -> nn.Module:
    pairs = pairwise(widths)
    return nn.Sequential(*(nn.Sequential(nn.Linear(n, m), nn.ReLU()) for n, m in pairs))


SIDES = pytest.mark.parametrize("sides", ["each", "in", "both"])


def way(choice: Choice) -> Blocks | SketchedMethod:
    made = make_method(choice.method, choice.options)
    assert isinstance(made, Blocks | SketchedMethod)
    return made


def variance(method: Blocks | SketchedMethod, m: LinearMap, size: int) -> float:
    """Of one-sided sketches 1/k; l blocks reach an l-th of the weight's directions."""
    return method.blocks(m, size) if isinstance(method, Blocks) else 1 / size


@SIDES
def test_no_other_sizes_of_as_many_values_have_less_variance(sides: Any) -> None:
    model = mlp(12, 30, 20, 18) if sides != "each" else mlp(12, 24, 36, 12)
    _, plan = bz.sketch(model, 0.4, ends="sketched", sides=sides)
    maps = {path: site.map for path, site in find_sites(model)[0].items()}
    ways = {path: way(plan.choices[path]) for path in maps}

    def kept(sizes: tuple[int, ...]) -> int:
        return sum(ways[p].values(m, k) for (p, m), k in zip(maps.items(), sizes, strict=True))

    def spread(sizes: tuple[int, ...]) -> float:
        return sum(variance(ways[p], m, k) for (p, m), k in zip(maps.items(), sizes, strict=True))

    chosen = tuple(plan.choices[path].size for path in maps)
    every = product(*(range(1, ways[p].most(m) + 1) for p, m in maps.items()))
    best = min(spread(sizes) for sizes in every if kept(sizes) <= kept(chosen))
    assert spread(chosen) == pytest.approx(best, rel=1e-12)


@SIDES
def test_the_next_step_would_exceed_the_budget(sides: Any) -> None:
    model = mlp(40, 60, 50, 40)
    small, plan = bz.sketch(model, 0.3, sides=sides)
    assert values(small) == plan.small["params"] <= 0.3 * values(model)
    maps, steps = {path: site.map for path, site in find_sites(model)[0].items()}, []
    for path, choice in plan.choices.items():
        now = way(choice).values(maps[path], choice.size)
        above = range(choice.size + 1, way(choice).most(maps[path]) + 1)
        dearer = (way(choice).values(maps[path], size) for size in above)
        steps.append(next((v for v in dearer if v > now), maps[path].weight.numel()) - now)
    assert values(small) + max(steps) > 0.3 * values(model)


def test_a_bound_on_multiply_adds_is_met_as_counted_on_the_delivered_network() -> None:
    model, x = NETWORKS["cnn"]()
    model.eval()
    small, plan = bz.sketch(model, bz.Budget(flops=0.7), batch=x)
    assert plan.small["flops"] == flops(small, x) <= 0.7 * flops(model, x)
    both, _ = bz.sketch(model, bz.Budget(flops=0.7, params=0.35), batch=x)
    assert flops(both, x) <= 0.7 * flops(model, x)
    assert values(both) <= 0.35 * values(model) < values(small)


def test_layers_are_sketched_on_the_sides_asked_for() -> None:
    _, plan = bz.sketch(mlp(40, 60, 50, 40), 0.3)
    assert {c.method for c in plan.choices.values()} == {"blocks"}
    _, plan = bz.sketch(mlp(40, 60, 50, 40), 0.3, sides="both")
    assert {c.options["sides"] for c in plan.choices.values()} == {"both"}


def test_small_ends_stay_dense_unless_asked_otherwise() -> None:
    model = nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 4))
    _, plan = bz.sketch(model, 0.5)
    assert set(plan.choices) == {"1", "2"}
    assert {plan.dense[path] for path in ("0", "3")} == {"it is the first or the last layer"}
    _, plan = bz.sketch(model, 0.5, ends="sketched")
    assert "it is the first or the last layer" not in plan.dense.values()
    wide = mlp(200, 64, 64, 4)  # its first layer holds most values
    assert "0.0" in bz.sketch(wide, 0.5)[1].choices
    assert "0.0" in bz.sketch(wide, 0.9, ends="dense")[1].dense


def test_only_the_layers_asked_for_are_sketched() -> None:
    _, plan = bz.sketch(mlp(40, 60, 50, 40), 0.8, layers=["1.*", "2.*"])
    assert set(plan.choices) == {"1.0", "2.0"}
    assert plan.dense["0.0"] == "not among the layers asked for"


def test_keeping_all_sketches_nothing(network: Network) -> None:
    model, _ = network
    small, plan = bz.sketch(model, 1.0)
    assert not plan.choices
    assert values(small) == values(model)


def test_more_values_make_no_layer_smaller(network: Network) -> None:
    model, _ = network
    before: dict[str, int] = {}
    for keep in (0.7, 0.8, 0.9):
        _, plan = bz.sketch(model, keep)
        assert all(plan.choices[p].size >= before[p] for p in plan.choices.keys() & before.keys())
        before = {path: choice.size for path, choice in plan.choices.items()}


@pytest.mark.parametrize(
    ("sides", "family"), [("each", "fold"), *product(["in", "both"], FAMILIES)]
)
def test_a_deep_network_keeps_the_scale_of_the_dense_one(family: str, sides: Any) -> None:
    """Log of the outputs' mean square, averaged over draws, within five standard errors."""
    x, gaps = torch.randn(64, 96), []
    for seed in range(12):
        model = nn.Sequential(*(nn.Linear(96, 96, bias=False) for _ in range(10)))
        small, plan = bz.sketch(model, 0.5, family=family, sides=sides, seed=seed)
        assert len(plan.choices) == 10
        with torch.no_grad():
            gaps.append(float((small(x).square().mean() / model(x).square().mean()).log()))
    gap = torch.tensor(gaps)
    assert gap.mean().abs() < 5 * gap.std() / len(gaps) ** 0.5


@pytest.mark.parametrize(
    ("keep", "settings", "says"),
    [
        (0.5, {"sides": "left"}, "sides is one of .*got 'left'"),
        (0.5, {"ends": "thin"}, "ends is one of .*got 'thin'"),
        (0.5, {"sides": "in", "family": "fourier"}, "a sketch family is one of .*got 'fourier'"),
        (0.5, {"sides": "in", "terms": 0}, "terms"),
        (0.5, {"family": "sign"}, "'each' is made of folds.*for sides 'in'.*got family='sign'"),
        (0.5, {"terms": 2}, "'each' is made of folds.*terms=2"),
        (0.5, {"layers": "block*"}, "'block\\*' fits none"),
        (bz.Budget(flops=0.5), {}, "a bound on flops is counted on a batch; got batch=None"),
        (bz.Budget(bytes=0.5), {}, r"sketch bounds params and flops; got .*\['bytes'\]"),
        (1.2, {}, r"keep is a fraction in \(0, 1\]; got"),
    ],
)
def test_what_cannot_be_sketched_is_refused(keep: Any, settings: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        bz.sketch(mlp(40, 60, 50, 40), keep, **settings)


def test_a_budget_below_the_smallest_sketches_says_what_they_keep() -> None:
    with pytest.raises(Unreachable, match=r"no sketch keeps 0.01 of the params: the smallest is 0"):
        bz.sketch(mlp(40, 60, 50, 40), 0.01)
    with pytest.raises(ValueError, match="nothing to sketch: needed a layer with a smaller form"):
        bz.sketch(nn.Linear(1, 1), 0.5)
