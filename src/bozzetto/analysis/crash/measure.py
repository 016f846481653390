"""Fault injection: the error and the accuracy of a network under many random fault patterns."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn

from bozzetto.analysis.crash.faults import Crash, NeuronFault, WeightFault
from bozzetto.analysis.crash.faulty import Broken, FaultySites, broken_neurons, broken_weights
from bozzetto.analysis.crash.moments import Unit
from bozzetto.batches import Batch, split_batch

Interval = tuple[float, float]


@dataclass(frozen=True)
class CrashReport:
    """What was measured at each rate p, one entry per fault pattern: (rates, patterns).

    `error` is mean |faulty − healthy| over inputs and outputs; `unchanged` the share of inputs
    whose largest output stays the same; `accuracy` the share that is right (None if unlabelled).
    """

    rates: tuple[float, ...]
    error: Tensor
    unchanged: Tensor
    accuracy: Tensor | None
    healthy_accuracy: float | None
    confidence: float

    def rows(self) -> list[dict[str, object]]:
        """One row a rate: means with the ends of their confidence intervals."""
        return [self._row(i) for i in range(len(self.rates))]

    def _row(self, i: int) -> dict[str, object]:
        row: dict[str, object] = {"p": self.rates[i]}
        shares = {"unchanged": self.unchanged, "accuracy": self.accuracy}
        found = {"error": student_interval(self.error[i], self.confidence)}
        means = {"error": self.error[i].mean().item()}
        for name, value in shares.items():
            if value is not None:
                found[name] = share_interval(value[i], self.confidence)
                means[name] = value[i].mean().item()
        for name, (low, high) in found.items():
            row |= {name: means[name], f"{name}_low": low, f"{name}_high": high}
        return row

    def figure(self, ax: Any) -> None:
        """The error against p, with its interval."""
        plot_errors(ax, "measured", self.rows())
        ax.set_xlabel("probability that a neuron fails")
        ax.set_ylabel("mean |error| of an output")
        ax.legend()


def plot_errors(ax: Any, label: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A line of errors against p with a band, both axes in log scale if it has positive values."""
    p, errors = [row["p"] for row in rows], [row["error"] for row in rows]
    ax.plot(p, errors, marker="o", label=label)
    ax.fill_between(
        p, [row["error_low"] for row in rows], [row["error_high"] for row in rows], alpha=0.2
    )
    if max(p) > 0:
        ax.set_xscale("log")
    if max(errors) > 0:
        ax.set_yscale("log")


def student_interval(values: Tensor, confidence: float) -> Interval:
    """Student's interval for the mean of independent patterns (right for many patterns)."""
    mean, n = values.double().mean().item(), len(values)
    if n < 2 or not math.isfinite(mean):
        return -math.inf, math.inf
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * values.double().std().item() / n**0.5
    return mean - half, mean + half


def share_interval(values: Tensor, confidence: float) -> Interval:
    """An interval for the mean of values in [0, 1] that holds for any number of patterns.

    The empirical Bernstein bound of Maurer and Pontil (2009, arXiv 0907.3740, theorem 4), used on
    both sides with half of 1 − confidence each.
    """
    n, mean = len(values), values.double().mean().item()
    if n < 2:
        return 0.0, 1.0
    log = math.log(4 / (1 - confidence))
    variance = values.double().var().item()
    half = math.sqrt(2 * variance * log / n) + 7 * log / (3 * (n - 1))
    return max(0.0, mean - half), min(1.0, mean + half)


def crash(
    model: nn.Module,
    batches: Iterable[Batch],
    p: float | Sequence[float],
    *,
    fault: NeuronFault | WeightFault | None = None,
    layers: Sequence[str] | None = None,
    unit: Unit = "neuron",
    patterns: int = 256,
    seed: int = 0,
    confidence: float = 0.95,
    rows: int = 2048,
) -> CrashReport:
    """Inject random faults and measure what they do.

    Each pattern is one broken network, run on all inputs; many run at once. The same patterns serve
    every p: what fails at a small p also fails at a larger one.

    Args:
        model: takes one tensor, batch first, and returns one; it is not changed.
        batches: inputs, or (input, target) with class targets.
        p: probabilities that a neuron (weight, bit) fails, independently of the others.
        fault: what failing means; neurons that output 0 by default.
        layers: names of the calls whose outputs (for weight faults: modules whose weights) fail;
            by default every activation before the output (every weight).
        unit: single neurons or whole channels.
        patterns: how many broken networks to draw.
        seed: of the patterns.
        confidence: of the intervals in the report.
        rows: how many patterns × inputs to run at once.

    Raises:
        ValueError: for p outside [0, 1], no batches, or unknown layers.
        TypeError: for a model that cannot be traced.
    """
    rates = tuple(float(rate) for rate in (p if isinstance(p, Sequence) else [p]))
    bad = [rate for rate in rates if not 0 <= rate <= 1]
    if bad or not rates:
        raise ValueError(f"crash needs at least one p, each in [0, 1]; got {bad or 'none'}")
    if patterns < 1 or not 0 < confidence < 1:
        raise ValueError(f"need patterns >= 1, 0 < confidence < 1; got {patterns}, {confidence}")
    data = [read_batch(batch) for batch in batches]
    if not data:
        raise ValueError("crash needs at least one batch; got none")
    fault = Crash() if fault is None else fault
    with torch.no_grad():
        if isinstance(fault, WeightFault):
            broken = broken_weights(model, fault, layers)
        else:
            broken = broken_neurons(FaultySites(model, data[0][0]), fault, layers, unit)
        width = max(1, rows // max(len(x) for x, _ in data))
        chunks = [range(i, min(i + width, patterns)) for i in range(0, patterns, width)]
        found = [torch.cat([_scores(broken, data, q, c, seed) for c in chunks]) for q in rates]
        healthy = _scores(broken, data, 0.0, range(1), seed)[0, 2].item()
    error, unchanged, right = torch.stack(found).unbind(-1)  # (rates, patterns)
    labelled = all(target is not None for _, target in data)
    return CrashReport(
        rates,
        error,
        unchanged,
        right if labelled else None,
        healthy if labelled else None,
        confidence,
    )


def _scores(
    broken: Broken,
    data: Sequence[tuple[Tensor, Tensor | None]],
    p: float,
    patterns: range,
    seed: int,
) -> Tensor:
    """Error, share unchanged and share right of every pattern over all data, (patterns, 3)."""
    total, count = torch.zeros(len(patterns), 3, dtype=torch.float64), 0
    for x, target in data:
        healthy = broken(x, 0.0, range(1), seed)  # (1, b, *out)
        output = broken(x, p, patterns, seed)
        error = (output - healthy).abs().nan_to_num(nan=math.inf, posinf=math.inf)
        choice, before = _rows(output).argmax(2), _rows(healthy).argmax(2)
        right = choice == before if target is None else choice == target.to(choice.device)
        for i, score in enumerate((_rows(error).mean(2), choice == before, right)):
            total[:, i] += score.double().sum(1).cpu()
        count += len(x)
    return total / count


def _rows(outputs: Tensor) -> Tensor:
    """(patterns, b, *out) -> (patterns, b, m)."""
    return outputs.reshape(*outputs.shape[:2], -1)


def read_batch(batch: Batch) -> tuple[Tensor, Tensor | None]:
    """The one input tensor of a batch, and its class targets.

    Raises:
        TypeError: for a batch of several inputs.
    """
    args, kwargs, target = split_batch(batch)
    inputs = [*args, *kwargs.values()]
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
        raise TypeError(f"crash needs batches of one input tensor; got {len(inputs)} inputs")
    return inputs[0], target
