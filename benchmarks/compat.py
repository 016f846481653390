"""Networks of other libraries, compressed to half: which steps work, and why one does not.

`make compat` installs torch, torchvision, timm, transformers and torch_geometric into .venv-compat
(6 GB) and runs this. Weights are random, configurations small. A finished cell is kept in
benchmarks/cache/compat for these versions, so that a run goes on where it was stopped and
NETWORKS="GPT-2 ViT" can run some of them.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import bozzetto as bz
from bozzetto.batches import call, tensors
from bozzetto.linalg import seeded
from compat_networks import NETWORKS

HERE = Path(__file__).parent
CACHE = HERE / "cache" / "compat"
KEEP = 0.5
LIBRARIES = ("torch", "torchvision", "timm", "transformers", "torch_geometric")
Row = dict[str, Any]


def versions() -> dict[str, str]:
    """Of the libraries whose networks these are; without those that are not here."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def judged(name: str) -> Row:
    """One row: what every step gave, up to the first that failed, and the seconds of each."""
    library, network = name.split(": ")
    row: Row = {"library": library, "network": network}
    seconds, began = {}, time.process_time()
    try:
        for step, value in _steps(name):
            row[step] = value
            seconds[step], began = round(time.process_time() - began, 1), time.process_time()
    except Exception as error:
        row["failed_after"] = list(row)[-1]
        row["reason"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return row | {"processor_seconds": seconds}


def _steps(name: str) -> Iterator[tuple[str, Any]]:
    with seeded(0, torch.device("cpu")):
        model, batch = NETWORKS[name]()
    for module in model.modules():  # an encoder and a decoder have their own
        if hasattr(getattr(module, "config", None), "use_cache"):
            module.config.use_cache = False  # a cache is no output to compare
    model.eval()
    yield "params", sum(p.numel() for p in model.parameters())
    small, plan = bz.compress(model, KEEP, [batch])
    small.eval()
    yield "layers", len(plan.choices)
    yield "left_dense", len(plan.dense)
    yield "params_kept", plan.kept()
    trained = sum(p.numel() for p in small.parameters())
    yield "budget_met", trained == plan.small["params"] <= KEEP * plan.target["params"]
    found = [y for y in tensors(call(small, batch)) if y.is_floating_point()]
    yield "forward", all(bool(y.isfinite().all()) for y in found)
    sum(y.square().mean() for y in found).backward()
    changed = [p.grad for path in plan.choices for p in small.get_submodule(path).parameters()]
    yield "backward", all(g is not None and bool(g.isfinite().all()) for g in changed)
    with tempfile.TemporaryDirectory() as folder:
        bz.save(Path(folder) / "net", small, plan)
        again = bz.load(Path(folder) / "net", model)
        with torch.no_grad():
            pairs = zip(tensors(call(again, batch)), tensors(call(small, batch)), strict=True)
            yield "same_after_loading", all(bool((a == b).all()) for a, b in pairs)
        for suffix in (".pt2", ".onnx"):
            bz.export(small, Path(folder) / f"net{suffix}", batch, batch="fixed")
            yield suffix[1:], True


def row_of(name: str, wanted: bool) -> Row | None:
    """The cell from the cache, or made now if wanted."""
    key = "-".join([name.replace(": ", "-"), *(f"{k}{v}" for k, v in versions().items())])
    file = CACHE / f"{key}.json"
    if not file.exists():
        if not wanted:
            return None
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(judged(name)))
        partial.replace(file)
    return json.loads(file.read_text())


def compat() -> dict[str, Any]:
    """All networks, or those that NETWORKS names by a part of the name; others as cached."""
    chosen = os.environ.get("NETWORKS", "").split()
    rows: dict[str, Row | None] = {}
    for name in NETWORKS:
        rows[name] = row_of(name, not chosen or any(part in name for part in chosen))
        print(rows[name], flush=True)
    return {
        "keep": KEEP,
        "versions": versions(),
        "rows": [row for row in rows.values() if row],
        "missing": [name for name in NETWORKS if not rows.get(name)],
    }


BENCHMARKS = {"compat": compat}
