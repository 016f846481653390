"""Recurrent modules and inputs of every form, and what is compared of a twin and torch's."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from bozzetto.composite import GRUCell, LSTMCell, Recurrent, RNNCell

B, T, N, H = 3, 5, 4, 6
KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "three layers": {"num_layers": 3},
    "two ways": {"bidirectional": True},
    "two ways, two layers": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "no bias": {"bias": False, "num_layers": 2},
}
CONFIGS = {f"{kind}, {shape}": (KINDS[kind], SHAPES[shape]) for kind in KINDS for shape in SHAPES}
CONFIGS |= {
    "projected": (nn.LSTM, {"proj_size": 2, "num_layers": 2, "bidirectional": True}),
    "projected, no bias": (nn.LSTM, {"proj_size": 2, "bias": False, "batch_first": True}),
    "relu": (nn.RNN, {"nonlinearity": "relu", "num_layers": 2}),
}


def numbers(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def make(fill, kind: type[nn.RNNBase], **options: Any) -> nn.RNNBase:
    return fill(kind(N, H, **{"dtype": torch.float64} | options))


def states(module: nn.RNNBase, *batch: int) -> Any:
    """An initial state, in torch's form."""
    count = module.num_layers * (1 + module.bidirectional)
    h = numbers(count, *batch, module.proj_size or H, seed=2)
    return (h, numbers(count, *batch, H, seed=3)) if isinstance(module, nn.LSTM) else h


def sequences() -> list[Tensor]:
    """Of lengths 2, 5 and 1: in no order."""
    return [numbers(length, N, seed=length) for length in (2, 5, 1)]


def whole(module: nn.RNNBase) -> tuple[Any, list[Tensor]]:
    x = numbers(B, T, N) if module.batch_first else numbers(T, B, N)
    return x, [x]


def unbatched(module: nn.RNNBase) -> tuple[Any, list[Tensor]]:
    x = numbers(T, N)
    return x, [x]


def single(module: nn.RNNBase) -> tuple[Any, list[Tensor]]:
    """One sequence of one step."""
    x = numbers(1, 1, N)
    return x, [x]


def packed(module: nn.RNNBase) -> tuple[Any, list[Tensor]]:
    xs = sorted(sequences(), key=len, reverse=True)
    return pack_sequence(xs), xs


def unsorted(module: nn.RNNBase) -> tuple[Any, list[Tensor]]:
    xs = sequences()
    return pack_sequence(xs, enforce_sorted=False), xs


INPUTS: dict[str, tuple[Callable[[nn.RNNBase], tuple[Any, list[Tensor]]], tuple[int, ...]]] = {
    "whole": (whole, (B,)),
    "no batch": (unbatched, ()),
    "one step": (single, (1,)),
    "packed": (packed, (3,)),
    "unsorted": (unsorted, (3,)),
}


def flat(result: Any) -> list[Tensor]:
    """All tensors of a call's result that hold numbers."""
    if isinstance(result, PackedSequence):
        return [result.data]
    return [result] if isinstance(result, Tensor) else [y for part in result for y in flat(part)]


def torch_name(name: str) -> str:
    """layers.1.reverse.hh.bias -> bias_hh_l1_reverse."""
    if not name.startswith("layers"):
        return "_".join(reversed(name.split(".")))
    _, depth, way, which, what = name.split(".")
    return f"{what}_{which}_l{depth}" + "_reverse" * (way == "reverse")


def gradients(module: nn.Module, result: Any, leaves: list[Tensor]) -> list[Tensor]:
    """Of one number made of all outputs: for the leaves, then the parameters in torch's order."""
    total = sum((y * numbers(*y.shape, seed=9).detach()).sum() for y in flat(result))
    named = {torch_name(name): p for name, p in module.named_parameters()}
    if not isinstance(module, Recurrent | LSTMCell | GRUCell | RNNCell):
        named = dict(module.named_parameters())
    wanted = [*leaves, *(named[name] for name in sorted(named))]
    return list(torch.autograd.grad(total, wanted, retain_graph=True))  # packing is shared
