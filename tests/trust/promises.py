"""What is promised for every network, method and budget, checked on one drawn case."""

import copy
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from drawn_networks import Drawn, drawn
from torch import Tensor, nn
from torch.testing import assert_close

import bozzetto as bz
from bozzetto.expand import expand
from bozzetto.knapsack import Unreachable
from bozzetto.maps import LinearMap
from bozzetto.methods import AUTO, AUTO_BYTES, Blocks, make_method
from bozzetto.plan import Choice, Plan
from bozzetto.prices import count_bytes, count_params, price_model
from bozzetto.sites import find_sites

WAYS = ("auto", "lowrank", "tucker", "signs", "hybrid", "sketched", "sketch")
_REFUSALS = ("nothing to compress", "nothing to sketch")


@dataclass(frozen=True)
class Case:
    """What a seed decides besides the network."""

    drawn: Drawn
    way: str
    budget: bz.Budget


def case(seed: int) -> Case:
    """The case of a seed; Tucker's factors are for networks with convolutions."""
    dice, found = Random(f"case {seed}"), drawn(seed)
    convolutional = {"convolutions", "groups"} & {*found.parts}
    way = dice.choice([way for way in WAYS if way != "tucker" or convolutional])
    keep = dice.choice((0.3, 0.5, 0.7, 0.9))
    resource = dice.choice(("params", "params", "flops", "bytes"))
    if way == "sketch" and resource == "bytes":
        resource = "params"
    return Case(found, way, bz.Budget(**{resource: keep}))


def state(one: Case) -> list[Any]:
    """All that must be as before: the network, its data, and what all of torch shares."""
    model = one.drawn.model
    return [
        {name: (value.clone(), value.stride()) for name, value in model.state_dict().items()},
        {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()},
        {n: (m.training, type(m), list(m._forward_hooks)) for n, m in model.named_modules()},
        [list(m._forward_pre_hooks) + list(m._backward_hooks) for m in model.modules()],
        {n: b.clone() for n, b in model.named_buffers()},
        [batch.clone() for batch in one.drawn.batches],
        torch.get_rng_state(),
        (random.getstate(), repr(np.random.get_state())),  # noqa: NPY002
        (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads()),
        (torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu")),
        torch.are_deterministic_algorithms_enabled(),
    ]


def assert_same(before: Any, after: Any) -> None:
    """Bit for bit, through dicts and lists."""
    if isinstance(before, Tensor):
        assert_close(after, before, rtol=0, atol=0, equal_nan=True)
    elif isinstance(before, dict):
        assert before.keys() == after.keys()
        for key in before:
            assert_same(before[key], after[key])
    elif isinstance(before, list | tuple) and not isinstance(before, torch.Size):
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert_same(one, other)
    else:
        assert before == after, (before, after)


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x)


def make(one: Case) -> tuple[nn.Module, bz.Plan]:
    """The small network and its plan."""
    model, batches = one.drawn.model, one.drawn.batches
    if one.way == "sketch":
        return bz.sketch(model, one.budget, batch=batches[0], ends="sketched", seed=3)
    return bz.compress(model, one.budget, batches, methods=one.way, seed=3)


def keep_promises(seed: int) -> tuple[str, tuple[str, ...]]:
    """Check all promises on the case of a seed.

    A budget that is refused has to be below the least that the network can become, and that least
    is then the budget.

    Returns:
        "kept"; "least" for promises kept at the least, after a refusal; or "refused" where nothing
        smaller can be made at all; and what the network is made of.

    Raises:
        AssertionError: for a promise that is broken.
    """
    one, end = case(seed), "kept"
    model = one.drawn.model
    before = state(one)
    try:
        small, plan = make(one)
    except ValueError as error:
        if not isinstance(error, Unreachable) and not str(error).startswith(_REFUSALS):
            raise AssertionError(f"refused for no known reason: {error}") from error
        assert_same(before, state(one))
        one, end = at_the_least(one), "least"
        if resource_of(one)[1] == 1:  # nothing smaller can be made
            return "refused", one.drawn.parts
        if not isinstance(error, Unreachable):
            raise AssertionError(f"refused although there is a smaller one: {error}") from error
        small, plan = make(one)
    assert_same(before, state(one))
    x = one.drawn.batches[0]
    _check_budget(one, small, plan)
    got = outputs(small, x)
    assert got.shape == outputs(model, x).shape
    assert got.dtype == outputs(model, x).dtype
    assert bool(got.isfinite().all()), "the output is finite"
    _check_reload(one, small, plan, got)
    _check_again(one, small)
    if not seed % 3:  # it takes as long as all the rest
        _check_export(small, x)
    return end, one.drawn.parts


def resource_of(one: Case) -> tuple[str, float]:
    """What the case bounds, and how much of it is kept."""
    ((resource, keep),) = one.budget.bounds().items()
    return resource, keep


def count_of(one: Case) -> Callable[[nn.Module], int]:
    """Counts what the case bounds."""
    x = one.drawn.batches[0]
    counts: dict[str, Callable[[nn.Module], int]] = {
        "params": count_params,
        "bytes": count_bytes,
        "flops": lambda net: price_model(net, x).flops,
    }
    return counts[resource_of(one)[0]]


def at_the_least(one: Case) -> Case:
    """The case with the smallest budget that can be met, found by trying every small form.

    Raises:
        AssertionError: if it is within the budget of the case.
    """
    model, count = one.drawn.model, count_of(one)
    resource, keep = resource_of(one)
    whole = least = count(model)
    for path, site in find_sites(expand(model))[0].items():
        forms = [Plan({path: choice}, {}, {}, {}, {}, 0) for choice in _smallest(one, site.map)]
        least -= max([0, *(whole - count(bz.rebuild(model, form)) for form in forms)])
    assert least > keep * whole, f"refused {keep} of {whole} {resource}; {least} can be reached"
    return replace(one, budget=bz.Budget(**{resource: min(1.0, (least + 0.5) / whole)}))


def _smallest(one: Case, m: LinearMap) -> Iterator[Choice]:
    """Sizes of every method of the case for a map: all for operations, else the three smallest."""
    names = {"auto": AUTO, "sketch": ("blocks",)}.get(one.way, (one.way,))
    if "bytes" in one.budget.bounds() and one.way == "auto":
        names = AUTO_BYTES
    for name in names:
        method, most = make_method(name, {}), None if one.budget.flops is not None else 3
        sizes = method.every_size(m) if isinstance(method, Blocks) else method.sizes(m)
        for size in sizes[:most]:
            yield Choice(name, size, seed=0, params=0)


def _check_budget(one: Case, small: nn.Module, plan: bz.Plan) -> None:
    model, count = one.drawn.model, count_of(one)
    resource, keep = resource_of(one)
    assert count(small) <= keep * count(model), (resource, count(small), count(model), keep)
    assert plan.small[resource] == count(small), (resource, plan.small, count(small))


def _check_reload(one: Case, small: nn.Module, plan: bz.Plan, got: Tensor) -> None:
    with TemporaryDirectory(prefix="trust-") as place:
        folder = bz.save(Path(place) / "small", small, plan)
        other = copy.deepcopy(one.drawn.model)
        with torch.no_grad():
            for p in other.parameters():
                p.mul_(0)  # its weights do not matter
        back = bz.load(folder, other)
    assert_same(outputs(back, one.drawn.batches[0]), got)


def _check_again(one: Case, small: nn.Module) -> None:
    """The same once more, whatever the generators' state."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(99)
        again, _ = make(one)
    assert_same(dict(small.state_dict()), dict(again.state_dict()))


def _check_export(small: nn.Module, x: Tensor) -> None:
    net = copy.deepcopy(small).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(net, (x,), strict=False).module()
        got, want = exported(x), net(x)
    tolerance = 4 * torch.finfo(want.dtype).eps ** 0.75
    size = float(want.double().abs().max())
    assert_close(got, want, rtol=tolerance, atol=tolerance * max(size, 1e-30))
