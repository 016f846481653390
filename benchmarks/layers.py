"""Time of small layers over the dense layer's, side by side in one process, and the floors.

A cell is (layer, keep, batch, threads, pass); all its forms are timed in turn. The floor of a form
is the larger of its bytes (parameters, buffers, input, output) over the bandwidth of a copy as
large, and its operations over the rate of a large matrix product, both measured in the same cell;
three times that for forward and backward, whose gradient at the output is given. With one thread
milliseconds and floors are of processor time, with two of the wall's clock. Cells are kept, and
SECONDS bounds a run.
"""

import os
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from bozzetto.prices import count_bytes, count_flops
from bozzetto.timing import Sample, sample_clocks, with_threads
from forms import FourProducts, forms, ready
from pretrained import Cells

__all__ = ["BENCHMARKS", "FourProducts", "forms"]

Row = dict[str, Any]
ROUNDS = 9
LARGE = 1024  # of the matrices whose product's rate is the machine's


class Case(NamedTuple):
    """A dense layer and its inputs."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    batches: tuple[int, ...] = (1, 8, 32, 512)


def _linear(n: int, m: int) -> Case:
    return Case(partial(nn.Linear, n, m), lambda b: torch.randn(b, n))


def _conv(n: int, size: int, taps: int) -> Case:
    build = partial(nn.Conv2d, n, n, taps, padding=taps // 2)
    return Case(build, lambda b: torch.randn(b, n, size, size), (1, 8, 32))


def _by_pixels(case: Case) -> Case:
    """With the channels of a pixel side by side, as weights get them too (`measure`)."""
    last = torch.channels_last
    return case._replace(inputs=lambda b: case.inputs(b).contiguous(memory_format=last))


CASES: dict[str, Case] = {
    "linear 384": _linear(384, 384),
    "linear 1024": _linear(1024, 1024),
    "linear 4096": _linear(4096, 4096),
    "linear 4096 to 1024": _linear(4096, 1024),
    "linear 1024 to 4096": _linear(1024, 4096),
    "conv 64 at 32": _conv(64, 32, 3),
    "conv 256 at 28": _conv(256, 28, 3),
    "conv 256 at 28 by pixels": _by_pixels(_conv(256, 28, 3)),
    "conv 512 at 14": _conv(512, 14, 3),
    "conv 1x1 256 at 28": _conv(256, 28, 1),
    "embedding 30522x384": Case(
        partial(nn.Embedding, 30522, 384), lambda b: torch.randint(30522, (b, 128)), (1, 8, 32)
    ),
}
KEEPS = (2, 4, 8, 16)  # times fewer weight values


class Floor(NamedTuple):
    """What a form moves and computes in one forward pass."""

    bytes: int
    flops: int


def _floor(layer: nn.Module, x: Tensor) -> Floor:
    """Of a table only the rows that are asked for count, read and written."""
    y = layer(x)
    io = sum(t.numel() * t.element_size() for t in (x, y))
    tables = [part for part in layer.modules() if isinstance(part, nn.Embedding)]
    read = sum(4 * part.embedding_dim * x.numel() for part in tables)
    weights = count_bytes(layer) - sum(4 * part.weight.numel() for part in tables)
    return Floor(io + read + weights, count_flops(lambda: layer(x)))


def _forward(layer: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        layer(x)


def _both(layer: nn.Module, x: Tensor, gradient: Tensor) -> None:
    x.grad = None
    for p in layer.parameters():
        p.grad = None
    layer(x).backward(gradient)


def _copy(source: Tensor, target: Tensor) -> None:
    target.copy_(source)


def measure(case: Case, keep: int, batch: int, threads: int, mode: str) -> Row:
    """One cell: medians over the rounds, ratios round by round."""
    dense, x = case.build(), case.inputs(batch)
    rare = (keep, batch, mode) == (8, 32, "forward")
    layers = forms(dense, keep, rare=rare)
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        layers = {n: cast(Any, m).to(memory_format=torch.channels_last) for n, m in layers.items()}
    floors = {name: _floor(layer, x) for name, layer in layers.items()}
    run: Callable[..., None] = _forward
    if mode == "forward":
        layers |= ready(layers, x, rare=rare and threads == 1)
    else:
        run = partial(_both, gradient=torch.randn_like(dense(x)))
        x.requires_grad_(x.is_floating_point())
    calls: dict[str, Callable[[], object]] = {
        name: partial(run, layer, x) for name, layer in layers.items()
    }
    small = next(floors[n] for n in ("fold in", "fold out", "lowrank") if n in floors)
    sizes = {"copy dense": floors["dense"].bytes, "copy small": small.bytes}
    for name, size in sizes.items():
        calls[name] = partial(_copy, torch.zeros(size // 8), torch.zeros(size // 8))
    a, b = torch.randn(LARGE, LARGE), torch.randn(LARGE, LARGE)
    found = sample_clocks(calls, ROUNDS)
    product = sample_clocks({"product": partial(torch.mm, a, b)}, 3)["product"]
    clock = "process" if threads == 1 else "wall"
    rate = 2 * LARGE**3 / _median(product, clock)
    bandwidth = {n: size / _median(found.pop(n), clock) for n, size in sizes.items()}
    work = 1 if mode == "forward" else 3

    def floor(name: str) -> float:
        form, _, _ = name.partition(",")
        speed = bandwidth["copy dense" if form == "dense" else "copy small"]
        return work * max(floors[form].flops / rate, floors[form].bytes / speed)

    return {
        "load": round(os.getloadavg()[0], 1),
        "milliseconds": round(1e3 * _median(found["dense"], clock), 4),
        "gigaflops": round(rate / 1e9, 1),
        "gigabytes": {name: round(speed / 1e9, 1) for name, speed in bandwidth.items()},
        "forms": {
            name: _form(samples, found["dense"], floor(name), clock)
            for name, samples in found.items()
        },
    }


def _median(samples: list[Sample], clock: str) -> float:
    return statistics.median(getattr(sample, clock) for sample in samples)


def _form(samples: list[Sample], dense: list[Sample], floor: float, clock: str) -> Row:
    def ratio(clock: str) -> float:
        pairs = zip(samples, dense, strict=True)
        return statistics.median(getattr(a, clock) / getattr(b, clock) for a, b in pairs)

    return {
        "wall": round(ratio("wall"), 4),
        "cpu": round(ratio("process"), 4),
        "floor": round(floor / _median(dense, clock), 4),
        "to floor": round(_median(samples, clock) / floor, 3),
    }


def cells() -> Iterator[tuple[str, int, int, int, str]]:
    """Those that targets are set for first."""
    linear = (1, 32, 512)
    named = {"linear 1024": linear, "linear 4096": linear, "conv 256 at 28": (1, 8)}
    named["conv 256 at 28 by pixels"] = named["conv 256 at 28"]
    kinds = [
        (1, "forward", 8), (1, "both", 8), (1, "forward", 4), (2, "forward", 8), (2, "both", 8),
        *((t, p, k) for p in ("forward", "both") for t in (1, 2) for k in (4, 2, 16)),
    ]  # fmt: skip
    for first in (True, False):
        for threads, mode, keep in dict.fromkeys(kinds):
            for name, case in CASES.items():
                for batch in case.batches:
                    if (batch in named.get(name, ())) is first:
                        yield name, keep, batch, threads, mode


def run() -> Row:
    """All cells, as far as SECONDS allow."""
    store = Cells("layers")
    for name, keep, batch, threads, mode in cells():
        key = {"layer": name, "keep": keep, "batch": batch, "threads": threads, "pass": mode}

        def make(case: Case = CASES[name], k: int = keep, b: int = batch, t: int = threads,
                 mode: str = mode) -> Row:  # fmt: skip
            with with_threads(t):
                return measure(case, k, b, t, mode)

        store.once(key, make)
    return {"rows": store.rows, "table": table(store.rows), "load": os.getloadavg()[0],
            "cells": {"all": len(list(cells())), "measured": len(store.rows)}}  # fmt: skip


def table(rows: list[Row]) -> Row:
    """{layer: {keep: {batch: {threads and pass: {form: row}}}}}; names joined by underscores."""
    made: Row = {}
    for row in rows:
        where = made
        names = [row["layer"], f"keep {row['keep']}", f"b {row['batch']}"]
        for name in (*names, f"{row['pass']} {row['threads']}"):
            where = where.setdefault(name.replace(" ", "_"), {})
        for form, value in row["forms"].items():
            name = form.replace(", ", "_").replace(" ", "_").replace("=", "")
            where[name] = {k.replace(" ", "_"): v for k, v in value.items()}
    return made


BENCHMARKS: dict[str, Callable[[], Row]] = {"layers": run}
