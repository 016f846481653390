"""How well a plan's forecast of latency agrees with the network it makes, in one process.

Both are of one thread's processor time, which other programs disturb less than the wall's clock.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

import bozzetto as bz
from bozzetto import prices
from bozzetto.compress import Survey, survey
from bozzetto.knapsack import Unreachable
from bozzetto.timely import timed
from bozzetto.timing import Sample, sample_clocks, with_threads
from pretrained import Cells

Row = dict[str, Any]
KEEPS = (0.6, 0.4, 0.25)  # of the multiply-adds
HALF = 0.5  # of the latency


def _mlp() -> tuple[nn.Module, Sequence[Any], Sequence[str]]:
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Linear(512, 512), nn.LayerNorm(512), nn.GELU()]
    return nn.Sequential(*layers).eval(), list(torch.randn(4, 32, 512)), ["*"]


def _resnet20() -> tuple[nn.Module, Sequence[Any], Sequence[str]]:
    from cifar import images, resnet

    return resnet(20), list(images("train")[0][:128].split(32)), ["*"]


def _minilm() -> tuple[nn.Module, Sequence[Any], Sequence[str]]:
    from minilm import case

    network = case()
    return network.model, list(network.calibration)[::4], network.layers


CASES: dict[str, Callable[[], tuple[nn.Module, Sequence[Any], Sequence[str]]]] = {
    "four layers of 512": _mlp,
    "ResNet-20": _resnet20,
    "MiniLM": _minilm,
}


def _by_processor(calls: Any, rounds: int, devices: Any = ()) -> dict[str, list[Sample]]:
    found = sample_clocks(calls, rounds, devices)
    return {name: [Sample(s.process, s.process) for s in ss] for name, ss in found.items()}


def forecasts(name: str) -> Row:
    """Forecast and measured fraction of the latency, by the multiply-adds kept."""
    model, calibration, layers = CASES[name]()
    found = survey(model, calibration, layers=layers, methods=("lowrank",), timed=True)
    rows = []
    for keep in KEEPS:
        plan = found.menu.choose(bz.Budget(flops=keep))
        forecast, measured = (
            plan.kept("latency"),
            timed(plan, model, calibration[0]).kept("latency"),
        )
        error = forecast / measured - 1
        rows.append({"keep": keep, "forecast": round(forecast, 4), "measured": round(measured, 4),
                     "error": round(error, 4)})  # fmt: skip
    worst = max(abs(row["error"]) for row in rows)
    return {"plans": rows, "worst": worst, "half": _half(found, model, calibration[0])}


def _half(found: Survey, model: nn.Module, batch: Any) -> Row:
    """What `Budget(latency=0.5)` delivers, timed again, or the fastest that was found."""
    try:
        small, plan = found.compress(bz.Budget(latency=HALF))
    except Unreachable as error:
        return {"asked": HALF, "refused": str(error)}
    times = prices.time_models({"target": model, "small": small}, batch)
    again = times["small"] / times["target"]
    return {"asked": HALF, "measured": round(plan.kept("latency"), 4), "again": round(again, 4)}


def run() -> Row:
    """All networks on one thread, as far as SECONDS allow."""
    store = Cells("forecast")
    for name in CASES:
        with with_threads(1), patch.object(prices, "sample_clocks", _by_processor):
            store.once({"network": name}, lambda n=name: forecasts(n))
    table = {row["network"].replace(" ", "_"): {n: row[n] for n in ("worst", "half")} | {
        f"{round(100 * plan['keep'])}": plan for plan in row["plans"]
    } for row in store.rows}  # fmt: skip
    return {"rows": store.rows, "table": table, "load": os.getloadavg()[0]}


BENCHMARKS: dict[str, Callable[[], Row]] = {"forecast": run}
