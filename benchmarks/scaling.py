"""How time and memory grow: layers with width, rank and batch, the compressor with its input.

Each series doubles one quantity; `exponent` is the slope of log seconds over log quantity, fitted
by least squares over the whole series. Seconds are of one thread's processor time, medians of
rounds.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

import bozzetto as bz
from architectures import Language, billion
from bozzetto.grouped import moment_bytes
from bozzetto.prices import count_bytes, count_params
from bozzetto.stats import layer_maps
from bozzetto.timing import sample_clocks, with_threads
from pretrained import Cells

Row = dict[str, Any]
WIDTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)
ROUNDS = 5


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of log values over log sizes."""
    return round(float(np.polyfit(np.log(sizes), np.log(values), 1)[0]), 3)


def _series(sizes: Sequence[int], make: Callable[[int], Mapping[str, Callable[[], object]]]) -> Row:
    """Milliseconds of each call at every size, and their exponents."""
    found: dict[str, list[float]] = {}
    for size in sizes:
        with torch.no_grad():
            for name, samples in sample_clocks(make(size), ROUNDS).items():
                found.setdefault(name, []).append(statistics.median(s.process for s in samples))
    return {
        name: {"milliseconds": [round(1e3 * s, 4) for s in seconds],
               "exponent": exponent(sizes, seconds)}
        for name, seconds in found.items()
    } | {"sizes": list(sizes)}  # fmt: skip


def _forms(n: int, keep: int = 8) -> dict[str, nn.Module]:
    dense = nn.utils.skip_init(nn.Linear, n, n)  # random numbers would take longer than the rest
    for p in dense.parameters():
        nn.init.constant_(p, 0.01)
    return {
        "dense": dense,
        "fold in": bz.nn.SketchLinear(n, n, n // keep, sides="in"),
        "fold out": bz.nn.SketchLinear(n, n, n // keep, sides="out"),
    }


def _calls(layers: Mapping[str, nn.Module], x: torch.Tensor) -> dict[str, Callable[[], object]]:
    return {name: partial(layer, x) for name, layer in layers.items()}


def width() -> Row:
    """8 times fewer values, batch 32; bytes of parameters and buffers beside."""
    made = _series(WIDTHS, lambda n: _calls(_forms(n), torch.randn(32, n)))
    with torch.device("meta"):
        held = {name: [count_bytes(_forms(n)[name]) for n in WIDTHS] for name in _forms(64)}
    return made | {"bytes": {n: {"bytes": b, "exponent": exponent(WIDTHS, b)}
                             for n, b in held.items()}}  # fmt: skip


def batch() -> Row:
    """2048 wide, 8 times fewer values."""
    layers = _forms(2048)
    return _series((32, 64, 128, 256, 512, 1024), lambda b: _calls(layers, torch.randn(b, 2048)))


def rank() -> Row:
    """2048 wide, batch 128; size is k."""

    def make(k: int) -> Mapping[str, Callable[[], object]]:
        x = torch.randn(128, 2048)
        layers = {s: bz.nn.SketchLinear(2048, 2048, k, sides=s) for s in ("in", "out")}
        return _calls({f"fold {s}": layer for s, layer in layers.items()}, x)

    return _series((64, 128, 256, 512, 1024), make)


def depth() -> Row:
    """Layers of 1024, 8 times fewer values, batch 32."""

    def make(count: int) -> Mapping[str, Callable[[], object]]:
        nets = {name: nn.Sequential(*(_forms(1024)[name] for _ in range(count)))
                for name in ("dense", "fold in")}  # fmt: skip
        return _calls(nets, torch.randn(32, 1024))

    return _series((2, 4, 8, 16), make)


def _compressing(make: Callable[[int], tuple[nn.Module, list[torch.Tensor]]], sizes: Sequence[int]
                 ) -> Row:  # fmt: skip
    """Processor seconds of calibrating, planning and fitting, one run each."""
    rows = []
    for size in sizes:
        model, batches = make(size)
        began = time.process_time()
        stats = bz.collect(model, batches)
        collected = time.process_time()
        plan = bz.plan(model, stats, bz.Budget(params=0.5), methods=("lowrank",))
        planned = time.process_time()
        bz.rebuild(model, plan, stats)
        rows.append((collected - began, planned - collected, time.process_time() - planned))
    names = ("calibrate", "plan", "fit")
    return {
        name: {"seconds": [round(row[i], 4) for row in rows],
               "exponent": exponent(sizes, [row[i] for row in rows])}
        for i, name in enumerate(names)
    } | {"sizes": list(sizes)}  # fmt: skip


def _mlp(n: int, layers: int = 4, rows: int = 1024) -> tuple[nn.Module, list[torch.Tensor]]:
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(n, n), nn.ReLU()]
    return nn.Sequential(*parts).eval(), list(torch.randn(rows, n).split(256))


def compress_width() -> Row:
    """Four layers of that width, 1024 calibration rows, low rank to half the values."""
    return _compressing(_mlp, (128, 256, 512, 1024))


def compress_depth() -> Row:
    """Layers of 256."""
    return _compressing(lambda count: _mlp(256, count), (4, 8, 16, 32))


def compress_calibration() -> Row:
    """Four layers of 512; size is rows of calibration data."""
    return _compressing(lambda rows: _mlp(512, 4, rows), (1024, 2048, 4096, 8192))


def kept_for_backward() -> Row:
    """Bytes of the batch that are kept between forward and backward: 4096 wide, batch 500.

    Beside the layer's output; weights and signs are there anyway.
    """
    x, found = torch.randn(500, 4096), {}
    pair = nn.Sequential(nn.Linear(4096, 256, bias=False), nn.Linear(256, 4096))
    for name, layer in (_forms(4096) | {"lowrank": pair}).items():
        kept: dict[int, int] = {}

        def pack(t: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            if len(x) in t.shape:
                kept[t.data_ptr()] = t.numel() * t.element_size()
            return t

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            layer(x.clone().requires_grad_())
        found[name] = sum(kept.values())
    return {"bytes": found, "of dense": {n: round(b / found["dense"], 4) for n, b in found.items()}}


def planned_by_counts() -> Row:
    """A transformer of more than a thousand million values, on the meta device."""
    with torch.device("meta"):
        model = cast(nn.Module, billion())
    before, began = _peak(), time.process_time()
    small, plan = bz.sketch(model, 0.25)
    return {
        "values": count_params(model), "small": count_params(small), "kept": plan.kept(),
        "seconds": round(time.process_time() - began, 2), "peak GiB more": _peak() - before,
    }  # fmt: skip


def _peak() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)


def checkpoint(depth: int = 84) -> Row:
    """A float32 transformer 512 wide through `compress`: the peak in a process of its own."""
    code = f"import scaling, json; print(json.dumps(scaling.compressed({depth})))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    return json.loads(done.stdout.splitlines()[-1])


def compressed(depth: int) -> Row:
    """In this process."""
    torch.set_num_threads(1)
    start = _peak()
    model = Language(4096, 512, depth, 8).eval()
    held, began = count_bytes(model) / 2**30, time.process_time()
    loaded = _peak()
    batches = [torch.randint(4096, (1, 64)) for _ in range(4)]
    moments = sum(moment_bytes(m) for m in layer_maps(model).values()) / 2**30
    small, plan = bz.compress(model, 0.5, batches, methods=("lowrank",), layers="blocks*")
    return {
        "checkpoint GiB": round(held, 3), "kept": round(plan.kept(), 4),
        "seconds": round(time.process_time() - began, 1), "before GiB": start,
        "loaded GiB": loaded, "moments GiB": round(moments, 3), "peak GiB": _peak(),
        "peak over checkpoint": round((_peak() - start) / held, 2),
        "small GiB": round(count_bytes(small) / 2**30, 3),
    }  # fmt: skip


SERIES: dict[str, Callable[[], Row]] = {
    "planned by counts": planned_by_counts,
    "kept for backward": kept_for_backward,
    "batch": batch,
    "rank": rank,
    "depth": depth,
    "compressor over width": compress_width,
    "compressor over depth": compress_depth,
    "compressor over calibration": compress_calibration,
    "checkpoint": checkpoint,
    "width": width,
}


def run() -> Row:
    """All series, as far as SECONDS allow."""
    store = Cells("scaling")
    for name, make in SERIES.items():
        with with_threads(1):
            store.once({"series": name}, make)
    table = {row["series"].replace(" ", "_"): _named(row) for row in store.rows}
    return {"rows": store.rows, "table": table, "load": os.getloadavg()[0]}


def _named(value: Any) -> Any:
    """The same with underscores in names, so that pages can point at them."""
    if not isinstance(value, dict):
        return value
    return {name.replace(" ", "_"): _named(item) for name, item in value.items()}


BENCHMARKS: dict[str, Callable[[], Row]] = {"scaling": run}
