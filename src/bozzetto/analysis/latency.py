"""Measured latency of several models on one batch, side by side in one process."""

import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from bozzetto.batches import Batch, call, device_of, in_mode, to
from bozzetto.timing import sample_in_turn, with_threads

__all__ = ["Latency", "latency"]


@dataclass(frozen=True)
class Latency:
    """Seconds of one call of each model, sampled in turn.

    Attributes:
        seconds: {name: one value a round}, all of the same rounds.
        threads: of torch, within an operation.
    """

    seconds: dict[str, tuple[float, ...]]
    threads: int

    def ratios(self, name: str) -> list[float]:
        """Time over that of the first model, round by round: below 1 is faster."""
        first = next(iter(self.seconds.values()))
        return [a / b for a, b in zip(self.seconds[name], first, strict=True)]

    def ratio(self, name: str) -> float:
        """The median of `ratios`."""
        return statistics.median(self.ratios(name))

    def rows(self) -> list[dict[str, object]]:
        """One row a model: median time, median ratio to the first and its quartiles."""
        return [self._row(name) for name in self.seconds]

    def _row(self, name: str) -> dict[str, object]:
        low, middle, high = _quartiles(self.ratios(name))
        return {
            "model": name,
            "milliseconds": 1000 * statistics.median(self.seconds[name]),
            "ratio": middle,
            "lower_quartile": low,
            "upper_quartile": high,
        }

    def figure(self, ax: Any) -> None:
        """Median ratio to the first model as bars, quartiles as lines."""
        names = list(self.seconds)
        quartiles = [_quartiles(self.ratios(name)) for name in names]
        middles = [middle for _, middle, _ in quartiles]
        reach = [[m - low for low, m, _ in quartiles], [high - m for _, m, high in quartiles]]
        ax.barh(range(len(names)), middles, height=0.5, color="C0")
        ax.errorbar(middles, range(len(names)), xerr=reach, fmt="none", ecolor="C1", elinewidth=2)
        ax.set_yticks(range(len(names)), names)
        ax.invert_yaxis()
        ax.set_xlabel(f"time of one call over that of {names[0]}")


def latency(
    models: Mapping[str, nn.Module],
    batch: Batch,
    *,
    repeats: int = 30,
    threads: int | None = None,
) -> Latency:
    """Time models in evaluation mode on one batch, in turn, so that a busy machine hits all alike.

    See `bozzetto.timing.sample_in_turn`.

    Args:
        models: by name; the first is what the others are compared to. Left as they were.
        batch: see `bozzetto.batches`.
        repeats: rounds.
        threads: of torch, within an operation, while this runs; None leaves them.

    Raises:
        ValueError: without models, or if repeats or threads is below 1.
    """
    if not models:
        raise ValueError("latency needs at least one model; got none")
    if repeats < 1 or (threads is not None and threads < 1):
        raise ValueError(
            f"latency needs repeats >= 1 and threads >= 1; got {repeats} and {threads}"
        )
    with ExitStack() as borrowed:
        borrowed.enter_context(with_threads(threads))
        borrowed.enter_context(torch.no_grad())
        for model in models.values():
            borrowed.enter_context(in_mode(model, training=False))
        inputs = {name: to(batch, device_of(model)) for name, model in models.items()}
        calls = {name: partial(call, model, inputs[name]) for name, model in models.items()}
        devices = {device_of(model) for model in models.values()}
        found = sample_in_turn(calls, repeats, devices)
        return Latency(found, torch.get_num_threads())


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
