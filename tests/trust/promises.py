"""What is promised for every network, method and budget, checked on one drawn case."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
from drawn_networks import Drawn, drawn
from torch import Tensor, nn
from torch.testing import assert_close

import bozzetto as bz
from bozzetto.knapsack import Unreachable
from bozzetto.prices import count_bytes, count_params, price_model

WAYS = ("auto", "lowrank", "tucker", "signs", "hybrid", "sketched", "sketch")
_REFUSALS = ("nothing to compress", "nothing to sketch")


@dataclass(frozen=True)
class Case:
    """What a seed decides besides the network."""

    drawn: Drawn
    way: str
    budget: bz.Budget


def case(seed: int) -> Case:
    """The case of a seed."""
    random = Random(f"case {seed}")
    way = random.choice(WAYS)
    keep = random.choice((0.3, 0.5, 0.7, 0.9))
    resource = random.choice(("params", "params", "flops", "bytes"))
    if way == "sketch" and resource == "bytes":
        resource = "params"
    return Case(drawn(seed), way, bz.Budget(**{resource: keep}))


def state(model: nn.Module) -> list[Any]:
    """All that must be as before, with the global random state."""
    return [
        {name: (value.clone(), value.stride()) for name, value in model.state_dict().items()},
        {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()},
        {n: (m.training, type(m), list(m._forward_hooks)) for n, m in model.named_modules()},
        [list(m._forward_pre_hooks) + list(m._backward_hooks) for m in model.modules()],
        {n: b.clone() for n, b in model.named_buffers()},
        torch.get_rng_state(),
        (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()),
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

    Returns:
        "kept", or "refused" for a budget that nothing meets; and what the network is made of.

    Raises:
        AssertionError: for a promise that is broken.
    """
    one = case(seed)
    model, x = one.drawn.model, one.drawn.batches[0]
    before = state(model)
    try:
        small, plan = make(one)
    except ValueError as error:
        if not isinstance(error, Unreachable) and not str(error).startswith(_REFUSALS):
            raise AssertionError(f"refused for no known reason: {error}") from error
        assert_same(before, state(model))
        return "refused", one.drawn.parts
    assert_same(before, state(model))
    _check_budget(one, small, plan)
    got = outputs(small, x)
    assert got.shape == outputs(model, x).shape
    assert got.dtype == outputs(model, x).dtype
    assert bool(got.isfinite().all()), "the output is finite"
    _check_reload(one, small, plan, got)
    _check_again(one, small)
    if not seed % 3:  # it takes as long as all the rest
        _check_export(small, x)
    return "kept", one.drawn.parts


def _check_budget(one: Case, small: nn.Module, plan: bz.Plan) -> None:
    model, x = one.drawn.model, one.drawn.batches[0]
    (resource, keep), *_ = one.budget.bounds().items()
    counts: dict[str, Callable[[nn.Module], int]] = {
        "params": count_params,
        "bytes": count_bytes,
        "flops": lambda net: price_model(net, x).flops,
    }
    count = counts[resource]
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
