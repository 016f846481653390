"""Functional calls of a traced graph as rules: activations, joins, and moves of elements."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bozzetto.analysis.crash.activations import MODULES, NoSoundBound, activation
from bozzetto.analysis.crash.rules import Affine, Combine, Concat, Rule, rearrange, rule

Call = Callable[[Tensor], Tensor]

_RESHAPES = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as"}
_MOVES = {"getitem", "permute", "transpose", "movedim"}
_KEEPS = {"contiguous", "clone", "detach", "to", "double", "float", "type_as", "dropout"}
_JOINS = {
    "add": (1.0, 1.0),
    "iadd": (1.0, 1.0),
    "add_": (1.0, 1.0),
    "sub": (1.0, -1.0),
    "isub": (1.0, -1.0),
}
# One more than how many positional settings a function shares with its module.
_SETTINGS = {"leaky_relu": 2, "elu": 2, "celu": 2, "softshrink": 2, "hardtanh": 3, "softplus": 3}
_POOLS: dict[str, type[nn.Module]] = {
    "max_pool1d": nn.MaxPool1d,
    "max_pool2d": nn.MaxPool2d,
    "avg_pool1d": nn.AvgPool1d,
    "avg_pool2d": nn.AvgPool2d,
    "adaptive_avg_pool1d": nn.AdaptiveAvgPool1d,
    "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d,
    "softmax": nn.Softmax,
    "log_softmax": nn.LogSoftmax,
}


class Source(NamedTuple):
    """What a call depends on: whether on several activations, and the first of them."""

    many: bool
    shape: torch.Size
    leads: bool  # the first argument is an activation


def call_rule(
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    source: Source,
    call: Call,
    value: Tensor,
) -> Rule:
    """The rule of a function or method call in a graph.

    Args:
        name: torch's name of the function.
        args: its arguments, with the tensors of a healthy run in place of nodes.
        kwargs: likewise.
        source: the arguments that depend on the input.
        call: the function of the first of these alone.
        value: its healthy result, (b, *s).

    Raises:
        NoSoundBound: for a function without a rule.
    """
    settings = {k: v for k, v in kwargs.items() if k not in ("inplace", "training", "_stacklevel")}
    if source.many:
        return _join(name, args, settings)
    if name in MODULES:
        return activation(MODULES[name](*args[1 : _SETTINGS.get(name, 1)], **settings))
    if name in _POOLS:
        dtype_free = {k: v for k, v in settings.items() if k not in ("dtype", "return_indices")}
        return rule(_POOLS[name](*args[1:], **dtype_free))
    if name in _RESHAPES:
        return rearrange(lambda x: x.reshape(x.shape[0], *value.shape[1:]))
    if name in _KEEPS or (name in _MOVES and _copies_nothing(name, args)):
        return rearrange(call)
    return _constant_call(name, args, settings, (call, value, source))


def _copies_nothing(name: str, args: tuple[Any, ...]) -> bool:
    """Whether no element is repeated by an index."""
    if name == "getitem":
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return all(isinstance(i, int | slice) or i is Ellipsis for i in index)
    return True


def _join(name: str, args: tuple[Any, ...], settings: dict[str, Any]) -> Rule:
    if name in _JOINS and settings.get("alpha", 1) == 1:
        return Combine(_JOINS[name])
    if name in ("cat", "concat"):
        return Concat(settings.get("dim", args[1] if len(args) > 1 else 0))
    raise NoSoundBound(f"no sound bound for {name!r} of several activations")


def _constant_call(
    name: str,
    args: tuple[Any, ...],
    settings: dict[str, Any],
    known: tuple[Call, Tensor, Source],
) -> Rule:
    """Sums and products with constants, means, borders, `linear` with a constant weight."""
    call = known[0]
    if name == "neg":
        return Affine(call, lambda x, _: x, single=True)
    if name == "pad" and settings.get("mode", args[2] if len(args) > 2 else "constant") == (
        "constant"
    ):
        return Affine(call, lambda x, _: call(x) - call(torch.zeros_like(x)), single=True)
    if name in ("mean", "sum"):
        return Affine(call, lambda x, _: call(x), squares=False)
    if name == "linear":
        weight = args[1] if len(args) > 1 else settings["weight"]
        return Affine(call, lambda x, q: F.linear(x, weight.abs() ** q))
    if name in _JOINS or name in ("mul", "imul", "truediv", "div"):
        return _scaled(name, known, rounded=settings.get("rounding_mode") is not None)
    raise NoSoundBound(f"no sound bound for {name!r}")


def _scaled(name: str, known: tuple[Call, Tensor, Source], *, rounded: bool) -> Affine:
    """Sums and products with a constant c: x + c, c − x, c·x and x / c."""
    call, value, source = known
    if source.shape != value.shape:
        raise NoSoundBound(f"no sound bound for {name!r} that broadcasts an activation")
    if "div" in name and (not source.leads or rounded):
        raise NoSoundBound(f"no sound bound for {name!r} by an activation, or rounded")

    def power(x: Tensor, q: int) -> Tensor:
        one = x.new_ones(1, *x.shape[1:])
        gain = call(one) - call(0 * one)
        return x * gain.abs() ** q

    return Affine(call, power, single=True)
