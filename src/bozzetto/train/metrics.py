"""Metrics: how well a model does on labelled batches."""

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bozzetto.batches import (
    Batch,
    batches_of,
    call,
    device_of,
    in_mode,
    output_loss,
    predicted,
    split_batch,
    to,
)
from bozzetto.train.losses import class_rows, is_classes, same_shape

__all__ = ["METRICS", "Metric", "evaluate"]

Metric = str | Callable[[Tensor, Tensor], float]


def _accuracy(output: Any, target: Any) -> Tensor:
    rows, numbers = class_rows(predicted(output), target)
    return rows.argmax(-1) == numbers


def _top5(output: Any, target: Any) -> Tensor:
    rows, numbers = class_rows(predicted(output), target)
    if rows.shape[1] < 5:
        raise ValueError(f"top5 needs at least 5 classes; the model gives {rows.shape[1]}")
    return (rows.topk(5, dim=-1).indices == numbers[:, None]).any(-1)


def _mse(output: Any, target: Any) -> Tensor:
    same_shape("output", predicted(output), "target", target)
    return (predicted(output).double() - target.double()).square()


def _cosine(output: Any, target: Any) -> Tensor:
    same_shape("output", predicted(output), "target", target)
    return F.cosine_similarity(predicted(output).double(), target.double(), dim=-1)


def _loss(output: Any, target: Any) -> Tensor:
    own = output_loss(output)
    if own is not None:
        return own.expand(len(predicted(output)))  # a mean over the batch: it counts by its size
    if not is_classes(target):
        return _mse(output, target)
    rows, numbers = class_rows(predicted(output), target)
    return F.cross_entropy(rows.double(), numbers, reduction="none")


# Each: (what the model returned, target) -> values whose mean over all batches is the metric.
METRICS: dict[str, Callable[[Any, Any], Tensor]] = {
    "accuracy": _accuracy,
    "top5": _top5,
    "mse": _mse,
    "cosine": _cosine,
    "loss": _loss,
}


class _Mean:
    """A named metric: the mean of values that come batch by batch."""

    def __init__(self, name: str) -> None:
        if name not in METRICS:
            raise ValueError(f"metric needs to be one of {[*METRICS]} or a callable; got {name!r}")
        self.name, self.total, self.count = name, 0.0, 0

    def add(self, output: Any, target: Any) -> None:
        values = METRICS[self.name](output, target)
        self.total += float(values.double().sum())
        self.count += values.numel()

    def result(self) -> float:
        return self.total / self.count if self.count else math.nan


class _OfAll:
    """A callable metric: it sees all predictions and targets at once, on the CPU."""

    def __init__(self, metric: Callable[[Tensor, Tensor], float]) -> None:
        self.metric, self.name = metric, getattr(metric, "__name__", type(metric).__name__)
        self.outputs: list[Tensor] = []
        self.targets: list[Tensor] = []

    def add(self, output: Any, target: Any) -> None:
        self.outputs.append(predicted(output).cpu())
        self.targets.append(torch.as_tensor(target).cpu())

    def result(self) -> float:
        value: object = self.metric(torch.cat(self.outputs), torch.cat(self.targets))
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if not isinstance(value, Real):
            came = type(value).__name__
            raise TypeError(f"a metric needs to return a number; {self.name} returned a {came}")
        return float(value)


@overload
def evaluate(model: nn.Module, loader: Iterable[Batch], metric: Metric = ...) -> float: ...
@overload
def evaluate(
    model: nn.Module, loader: Iterable[Batch], metric: Sequence[Metric]
) -> dict[str, float]: ...
def evaluate(
    model: nn.Module, loader: Iterable[Batch], metric: Metric | Sequence[Metric] = "accuracy"
) -> float | dict[str, float]:
    """Metrics of the model in evaluation mode, over all samples of all batches.

    Args:
        model: left as it was, training flags included.
        loader: labelled batches as in `bozzetto.batches`; they are moved to the model's device.
        metric: "accuracy", "top5", "mse" and "cosine" (means over all entries), "loss" (the loss
            that the model returns, else cross entropy for integer targets, else mse), or a
            callable from all predictions and all targets, each concatenated, to a number. Several
            in a list give a dict by name.

    Raises:
        ValueError: if there are no batches, one has no target or a class that the model lacks,
            shapes do not fit, or a prediction or the metric is NaN.
        TypeError: if a metric does not return a number, or for a Tensor in the place of batches.
    """
    if isinstance(metric, str) or callable(metric):
        return next(iter(evaluate(model, loader, [metric]).values()))
    meters = [_Mean(m) if isinstance(m, str) else _OfAll(m) for m in metric]
    names = [meter.name for meter in meters]
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"metrics need names that differ, and at least one; got {names}")
    with in_mode(model, training=False), torch.no_grad():
        _fill(meters, model, loader)
    return {meter.name: _checked(meter) for meter in meters}


def _fill(meters: list[_Mean | _OfAll], model: nn.Module, loader: Iterable[Batch]) -> None:
    number, device = 0, device_of(model)
    for number, batch in enumerate(batches_of(loader), start=1):
        moved = to(batch, device)
        output, target = call(model, moved), split_batch(moved)[2]
        if target is None:
            raise ValueError(
                f"evaluation needs batches (input, target); batch {number} has no target"
            )
        if bool(predicted(output).isnan().any()):
            raise ValueError(f"the model's predictions for batch {number} have NaN")
        for meter in meters:
            meter.add(output, target)
    if not number:
        raise ValueError("evaluation needs at least one batch; the loader gave none")


def _checked(meter: _Mean | _OfAll) -> float:
    value = meter.result()
    if math.isnan(value):
        raise ValueError(f"the metric {meter.name} is NaN")
    return value
