"""Batches: what the library takes for one, how a model is called on it, and what it gives back."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

__all__ = [
    "Batch",
    "batch_size",
    "batches_of",
    "call",
    "copied",
    "device_of",
    "first_input",
    "in_mode",
    "output_loss",
    "predicted",
    "split_batch",
    "tensors",
    "to",
]

Batch = Tensor | Mapping[str, Any] | Sequence[Any]


def batches_of(given: Iterable[Batch]) -> Iterable[Batch]:
    """The same, if it can be an iterable of batches.

    Raises:
        TypeError: for a Tensor: its rows would be taken for batches.
    """
    if isinstance(given, Tensor):
        raise TypeError("batches are needed, as a list [x] or a loader; got a Tensor")
    return given


def split_batch(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Positional arguments, keyword arguments and target (None: unlabelled) of a batch.

    A batch is one of

    * a Tensor or PackedSequence: the input;
    * a Mapping: keyword arguments; its "labels", where it has some, are the target too;
    * a tuple or list `(input, target)`, or `(input,)`: the input is a Tensor, a tuple or list of
      positional arguments, or a Mapping of keyword arguments. Two inputs and no target are
      `((first, second), None)`. A PackedSequence stands where a Tensor does.

    Raises:
        TypeError: if it is none of these.
    """
    if isinstance(batch, Tensor | PackedSequence):
        return (batch,), {}, None
    if isinstance(batch, Mapping):
        return (), dict(batch), batch.get("labels")
    if isinstance(batch, tuple | list) and len(batch) in (1, 2):
        args, kwargs, target = _arguments(batch[0])
        return args, kwargs, batch[1] if len(batch) == 2 else target
    came = type(batch).__name__
    if isinstance(batch, tuple | list):
        came += f" of {len(batch)} items (several inputs go into one: ((a, b, …), target))"
    raise TypeError(f"a batch is a Tensor, a mapping or a tuple (input, target); got a {came}")


def _arguments(given: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    if isinstance(given, Tensor | PackedSequence | Mapping):
        return split_batch(given)
    if isinstance(given, tuple | list):
        return tuple(given), {}, None
    raise TypeError(
        "the input of a batch is a Tensor, a tuple of positional arguments or a mapping of "
        f"keyword arguments; got a {type(given).__name__}"
    )


def first_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The input of a layer's call, given by place or as the only keyword."""
    return args[0] if args else next(iter(kwargs.values()))


def call(model: Callable[..., Any], batch: Batch) -> Any:
    """What the model returns for the input of a batch."""
    args, kwargs, _ = split_batch(batch)
    return model(*args, **kwargs)


def to(batch: Any, device: torch.device) -> Any:
    """The same structure of tuples, lists and mappings with its tensors on `device`."""
    if isinstance(batch, Tensor | PackedSequence):
        return cast(Any, batch).to(device)
    if isinstance(batch, Mapping):
        return {name: to(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(to(value, device) for value in batch)
    return batch


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy; weights that hooks make of others (pruning does) are copied as they are.

    Args:
        model: not changed.
        memo: copies to take, by the id of what they stand for.
    """
    held = [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor)]
    made = {id(v): v.detach().clone() for v in held if not v.is_leaf}
    return copy.deepcopy(model, made | (memo or {}))


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer is, so where its batches belong."""
    tensors = chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def batch_size(batch: Batch) -> int:
    """The length of the first axis of the first tensor of the input, or its packed sequences.

    Raises:
        ValueError: if the input has no tensor with an axis.
    """
    args, kwargs, _ = split_batch(batch)
    if isinstance(first := next(iter([*args, *kwargs.values()]), None), PackedSequence):
        return int(first.batch_sizes[0])
    for tensor in tensors([*args, *kwargs.values()]):
        if tensor.ndim:
            return len(tensor)
    raise ValueError("the input of a batch needs a tensor whose first axis is the batch; got none")


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a structure of mappings, lists and tuples, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def _field(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def predicted(output: Any) -> Tensor:
    """The tensor of predictions in what a model returned: itself, or its `logits`.

    Raises:
        TypeError: if there is neither.
    """
    found = output if isinstance(output, Tensor) else _field(output, "logits")
    if not isinstance(found, Tensor):
        raise TypeError(
            "predictions are the model's output, a Tensor, or its field `logits`; "
            f"got a {type(output).__name__}"
        )
    return found


def output_loss(output: Any) -> Tensor | None:
    """The `loss` that the model itself returned (as transformers' models do), if any."""
    found = None if isinstance(output, Tensor) else _field(output, "loss")
    return found if isinstance(found, Tensor) else None


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Training or evaluation mode; each module's own flag is put back afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.train(training)
        yield
    finally:
        for module, flag in flags:
            module.training = flag
