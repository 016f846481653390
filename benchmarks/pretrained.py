"""Trained networks made smaller by this library and by others, on the same data at the same sizes.

A cell is (network, method, keep, tuned or not); `keep` is the fraction of the values of the layers
that may change. Cells are kept in benchmarks/cache, so that a run goes on where it was stopped; a
cache that is not there begins with the cells of the results file (delete those to make them anew).
"""

import copy
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import bozzetto as bz
from bozzetto.compress import Survey, survey
from bozzetto.prices import price_model
from peers import PEERS, by_multiply_adds, compressible, int8

HERE = Path(__file__).parent
CACHE = HERE / "cache"
Row = dict[str, Any]
OURS = "bozzetto"


@dataclass(frozen=True)
class Case:
    """A trained network with its data.

    Attributes:
        name: of the benchmark.
        model: the target.
        layers: patterns of the paths that may change.
        calibration: unlabelled batches.
        metric: a network -> a number, the higher the better.
        unit: of the metric.
        keeps: fractions of the layers' values.
        peers: names in `PEERS`.
        tune: a small network and the target -> the small one tuned, the same way for everyone.
        tuned: (method, keep) that are tuned.
        tune_long: the same with more of the data.
        tuned_long: (method, keep) for which that was affordable.
        bounds: what else ours is asked to keep.
        equal: fractions of the multiply-adds at which the others are measured too.
        draws: other calibration data, on each of which ours is measured again.
        notes: facts for the file.
    """

    name: str
    model: nn.Module
    layers: Sequence[str]
    calibration: Sequence[Any]
    metric: Callable[[nn.Module], float]
    unit: str
    keeps: Sequence[float]
    peers: Sequence[str]
    tune: Callable[[nn.Module, nn.Module], nn.Module] | None = None
    tuned: Sequence[tuple[str, float]] = ()
    tune_long: Callable[[nn.Module, nn.Module], nn.Module] | None = None
    tuned_long: Sequence[tuple[str, float]] = ()
    bounds: Sequence[str] = ("multiply-adds", "bytes")
    equal: Sequence[float] = ()
    draws: Sequence[Sequence[Any]] = ()
    notes: dict[str, Any] = field(default_factory=dict)


class Cells:
    """Finished cells of a benchmark, in a file; none begins later than SECONDS, if set."""

    def __init__(self, name: str) -> None:
        CACHE.mkdir(exist_ok=True)
        self._file = CACHE / f"pretrained-{name}.json"
        self._end = time.monotonic() + float(os.environ.get("SECONDS", "inf"))
        results = HERE / "results" / f"{name}.json"
        self.rows: list[Row] = []
        if self._file.exists():
            self.rows = json.loads(self._file.read_text())
        elif results.exists():
            self.rows = json.loads(results.read_text())["rows"]

    def over(self) -> bool:
        """Whether no cell may begin any more."""
        return time.monotonic() > self._end

    def once(self, key: Row, make: Callable[[], Row]) -> None:
        """Make a cell unless it is there."""
        names = {*key, "draw"}  # which the main cells have not
        if any(all(row.get(n) == key.get(n) for n in names) for row in self.rows) or self.over():
            return
        self.rows.append(key | make())
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(self.rows, indent=1))
        partial.replace(self._file)
        print(self.rows[-1], flush=True)


def values(model: nn.Module) -> int:
    """Trained values."""
    return sum(p.numel() for p in model.parameters())


def study(case: Case) -> Row:
    """All cells of a network."""
    torch.set_num_threads(int(os.environ.get("THREADS", "2")))
    cells, total = Cells(case.name), values(case.model)
    free = sum(s.map.weight.numel() for s in compressible(case.model, case.layers).values())
    whole = price_model(case.model, case.calibration[0])

    def measure(small: nn.Module, seconds: float) -> Row:
        price = price_model(small, case.calibration[0])
        return {
            "values_kept": round((price.params - total + free) / free, 4),
            "params_kept": round(price.params / total, 4),
            "flops_kept": round(price.flops / whole.flops, 4),
            "bytes": price.bytes,
            case.unit: round(case.metric(small), 4),
            "seconds": round(seconds, 1),
        }

    cells.once({"method": "dense", "keep": 1.0, "tuned": False}, lambda: measure(case.model, 0.0))
    networks: dict[tuple[str, float], nn.Module] = {}

    @cache
    def surveyed() -> Survey:
        return survey(case.model, case.calibration, layers=case.layers)

    @cache
    def measured() -> Survey:
        return surveyed().measured(2)

    def delivered(method: str, keep: float) -> tuple[nn.Module, float]:
        began = time.perf_counter()
        if method == OURS:
            small, _ = surveyed().compress(of_layers(keep, free, total))
        elif method == f"{OURS} by measured costs":
            small, _ = measured().compress(of_layers(keep, free, total))
        elif method == f"{OURS} by multiply-adds":
            small, _ = surveyed().compress(bz.Budget(flops=keep))
        elif method == f"{OURS} by bytes":  # of the whole network; bits of signs count
            budget = bz.Budget(bytes=keep)
            small, _ = bz.compress(case.model, budget, case.calibration, layers=case.layers)
        elif method.endswith(" by multiply-adds"):
            peer = method.removesuffix(" by multiply-adds")
            small = by_multiply_adds(peer, case.model, case.layers, keep, case.calibration)
        else:
            small = PEERS[method](case.model, case.layers, keep, case.calibration)
        networks[method, keep] = small
        return small, time.perf_counter() - began

    for method in [OURS, *case.peers, *(f"{OURS} by {bound}" for bound in case.bounds)]:
        for keep in case.keeps:
            key = {"method": method, "keep": keep, "tuned": False}
            cells.once(key, lambda m=method, k=keep: measure(*delivered(m, k)))
    for tune, name, tuned in (
        (case.tune_long, "long", case.tuned_long), (case.tune, True, case.tuned),
    ):  # fmt: skip
        for method, keep in tuned if tune else ():
            cells.once(
                {"method": method, "keep": keep, "tuned": name},
                lambda m=method, k=keep, t=tune: _tuned(case, t, delivered(m, k)[0], measure),
            )
    for peer in case.peers:
        for keep in case.equal:
            method = f"{peer} by multiply-adds"
            key = {"method": method, "keep": keep, "tuned": False}
            cells.once(key, lambda m=method, k=keep: measure(*delivered(m, k)))
    _rounded(case, cells, networks, delivered, measure)
    for number, calibration in enumerate(case.draws, 1):
        again = cache(lambda data=calibration: survey(case.model, data, layers=case.layers))
        for keep in case.keeps:
            key = {"method": OURS, "keep": keep, "tuned": False, "draw": number}
            budget = of_layers(keep, free, total)
            cells.once(key, lambda s=again, b=budget: measure(s().compress(b)[0], 0.0))
    rows = sorted(cells.rows, key=lambda row: (str(row["tuned"]), -row["keep"], row["method"]))
    _plot(case, rows)
    table: dict[str, Row] = {}
    for row in rows:
        if "draw" not in row:
            place = f"{round(100 * row['keep'])}{_SUFFIX[row['tuned']]}"
            table.setdefault(row["method"].replace(" ", "_"), {})[place] = row[case.unit]
    return {
        "table": table,
        "draws": _spread(case, rows),
        "rows": rows,
        "unit": case.unit,
        "layers_values": free,
        "values": total,
    } | case.notes


def of_layers(keep: float, free: int, total: int) -> bz.Budget:
    """A fraction of the values of the layers that may change, as one of the whole."""
    return bz.Budget(params=(total - free + keep * free) / total)


def _spread(case: Case, rows: Sequence[Row]) -> dict[str, Row]:
    """Mean and standard deviation of ours over the draws of calibration data."""
    found: dict[str, Row] = {}
    for keep in case.keeps if case.draws else ():
        own = [r for r in rows if (r["method"], r["keep"], r["tuned"]) == (OURS, keep, False)]
        if len(value := [row[case.unit] for row in own]) > 1:
            spread = {"mean": float(np.mean(value)), "deviation": float(np.std(value, ddof=1))}
            found[f"{round(100 * keep)}"] = {"draws": len(value)} | spread
    return found


def _rounded(
    case: Case, cells: Cells, networks: Any, delivered: Any, measure: Callable[..., Row]
) -> None:
    """8-bit weights alone and on top of ours: bytes count a value as one byte there."""
    layers = list(case.layers)

    def bytes_of(model: nn.Module) -> int:
        rounded = {
            id(s.map.weight)
            for p, s in compressible(model, ["*"]).items()
            if any(p == q or p.startswith(f"{q}.") for q in compressible(case.model, layers))
        }
        return sum(
            p.numel() * (1 if id(p) in rounded else p.element_size()) for p in model.parameters()
        )

    def row(model: nn.Module) -> Row:
        names = list(compressible(case.model, layers))
        return measure(int8(model, names), 0.0) | {"bytes": bytes_of(model)}

    cells.once({"method": "int8", "keep": 1.0, "tuned": False}, lambda: row(case.model))
    for keep in case.keeps:
        cells.once(
            {"method": f"{OURS} + int8", "keep": keep, "tuned": False},
            lambda k=keep: row(networks.get((OURS, k)) or delivered(OURS, k)[0]),
        )


_SUFFIX: dict[bool | str, str] = {False: "", True: "_tuned", "long": "_long"}


def _tuned(case: Case, tune: Any, small: nn.Module, measure: Callable[..., Row]) -> Row:
    began = time.perf_counter()
    return measure(tune(copy.deepcopy(small), case.model), time.perf_counter() - began)


def _plot(case: Case, rows: Sequence[Row]) -> None:
    """Quality against the fraction of values: a colour a method, dashed when tuned."""
    figure, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
    dense = next(row[case.unit] for row in rows if row["method"] == "dense")
    ax.axhline(dense, color="0.5", linestyle=":", label="dense")
    for number, method in enumerate([OURS, *case.peers]):
        for tuned in (False, True):
            points = sorted(
                (row["values_kept"], row[case.unit])
                for row in rows
                if row["method"] == method and row["tuned"] is tuned and "draw" not in row
            )
            if points:
                label = f"{method}, tuned" if tuned else method
                x, y = zip(*points, strict=True)
                ax.plot(x, y, "s--" if tuned else "o-", color=f"C{number}", label=label)
    ax.set_ylim(bottom=max(ax.get_ylim()[0], 0.6 * dense))  # what is lower is of no use
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("fraction of the layers' values")
    ax.set_ylabel(case.unit)
    ax.set_title(case.name)
    ax.legend(fontsize=8)
    (HERE / "results").mkdir(exist_ok=True)
    figure.savefig(HERE / "results" / f"{case.name}.png", dpi=110)
    plt.close(figure)


__all__ = ["OURS", "Case", "study"]
