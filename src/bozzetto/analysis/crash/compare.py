"""Several networks, or several layers of one, failing side by side."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bozzetto.analysis.crash.activations import NoSoundBound
from bozzetto.analysis.crash.bound import crash_bound
from bozzetto.analysis.crash.faults import NeuronFault, WeightFault
from bozzetto.analysis.crash.faulty import FaultySites
from bozzetto.analysis.crash.measure import CrashReport, crash, plot_errors, read_batch
from bozzetto.analysis.crash.moments import Unit
from bozzetto.batches import Batch

Bounds = Sequence[float] | str  # one for each rate, or why there is none


@dataclass(frozen=True)
class CrashComparison:
    """Measured errors by name, and guaranteed bounds on them where asked for and possible."""

    reports: Mapping[str, CrashReport]
    bounds: Mapping[str, Bounds]

    def rows(self) -> list[dict[str, object]]:
        """The rows of every report under its name, with the bound (or why there is none)."""
        rows: list[dict[str, object]] = []
        for name, report in self.reports.items():
            bounds = self.bounds.get(name)
            for i, row in enumerate(report.rows()):
                bound = bounds if bounds is None or isinstance(bounds, str) else bounds[i]
                rows.append({"name": name, **row, "bound": bound})
        return rows

    def figure(self, ax: Any) -> None:
        """Measured errors against p, and the bounds as dashed lines of the same colour."""
        for name, report in self.reports.items():
            plot_errors(ax, name, report.rows())
            bounds = self.bounds.get(name)
            if bounds is not None and not isinstance(bounds, str):
                colour = ax.lines[-1].get_color()
                ax.plot(report.rates, bounds, "--", color=colour, label=f"{name}, bound")
        ax.set_xlabel("probability that a neuron fails")
        ax.set_ylabel("mean |error| of an output")
        ax.legend()


def compare_crashes(
    models: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    p: Sequence[float],
    *,
    fault: NeuronFault | WeightFault | None = None,
    unit: Unit = "neuron",
    patterns: int = 256,
    seed: int = 0,
    bounded: int = 0,
) -> CrashComparison:
    """Break several models of the same inputs in the same way: a target and its small versions.

    Args:
        models: by name.
        batches: as for `crash`.
        p: fault probabilities.
        fault: what failing means.
        unit: what fails.
        patterns: broken networks of each model.
        seed: of the patterns.
        bounded: also bound the mean error on the first so many inputs (crashes only).

    Raises:
        ValueError: as `crash` does, or for bounds of other faults than crashes.
    """
    cases = {name: (model, None) for name, model in models.items()}
    return _side_by_side(cases, list(batches), p, _Setting(fault, unit, patterns, seed), bounded)


def crash_by_layer(
    model: nn.Module,
    batches: Iterable[Batch],
    p: Sequence[float],
    *,
    fault: NeuronFault | None = None,
    unit: Unit = "neuron",
    patterns: int = 256,
    seed: int = 0,
    bounded: int = 0,
) -> CrashComparison:
    """Break one layer at a time: which layers does the output depend on most?

    Args:
        model: as for `crash`.
        batches: as for `crash`.
        p: fault probabilities.
        fault: what failing means.
        unit: what fails.
        patterns: broken networks for each layer.
        seed: of the patterns.
        bounded: also bound the mean error on the first so many inputs (crashes only).

    Raises:
        ValueError: as `crash` does, or for bounds of other faults than crashes.
    """
    data = list(batches)
    if not data:
        raise ValueError("crash_by_layer needs at least one batch; got none")
    names = FaultySites(model, read_batch(data[0])[0]).failing(None)
    cases = {name: (model, name) for name in names}
    return _side_by_side(cases, data, p, _Setting(fault, unit, patterns, seed), bounded)


@dataclass(frozen=True)
class _Setting:
    """What is the same in every case."""

    fault: NeuronFault | WeightFault | None
    unit: Unit
    patterns: int
    seed: int


def _side_by_side(
    cases: Mapping[str, tuple[nn.Module, str | None]],
    data: Sequence[Batch],
    p: Sequence[float],
    how: _Setting,
    bounded: int,
) -> CrashComparison:
    """Every case is a model, and the one layer of it that fails (or all)."""
    if bounded and how.fault is not None:
        raise ValueError(f"bounds are for neurons that output 0 (fault=None); got {how.fault!r}")
    reports = {
        name: crash(model, data, p, layers=None if layer is None else [layer], **vars(how))
        for name, (model, layer) in cases.items()
    }
    if not bounded:
        return CrashComparison(reports, {})
    x = torch.cat([read_batch(batch)[0] for batch in data])[:bounded]
    bounds = {
        name: _mean_bounds(model, layer, x, p, how.unit) for name, (model, layer) in cases.items()
    }
    return CrashComparison(reports, bounds)


def _mean_bounds(
    model: nn.Module, layer: str | None, x: Tensor, p: Sequence[float], unit: Unit
) -> Bounds:
    try:
        found = [
            crash_bound(model, rate if layer is None else {layer: rate}, x=x, unit=unit)
            for rate in p
        ]
    except NoSoundBound as error:
        return str(error)
    return [bound.best.mean().item() for bound in found]
