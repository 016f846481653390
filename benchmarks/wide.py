"""What it costs to keep a sketch of a moment that is too wide to hold, on MiniLM's widest layers.

Layers wider than 16,384 keep 1,024 sketched directions and the diagonal. Here the layers of 1,536
inputs keep as small a share, and some others; low rank fitted with that is judged by the whole
moment. MiniLM needs what `minilm.py` needs.
"""

import os
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import bozzetto as bz
from bozzetto.batches import call, first_input
from bozzetto.methods import LowRank, Objective
from bozzetto.moments import RANK, WIDE, SketchedMoment
from bozzetto.sites import find_sites
from bozzetto.stats import Stats
from minilm import case

LAYERS = [f"bert.encoder.layer.{i}.output.dense" for i in (0, 5)]
SHARES = (1 / 32, RANK / WIDE, 1 / 8, 1 / 4)  # of the directions, in the sketch
KEEPS = (0.5, 0.25)


def _inputs(model: torch.nn.Module, path: str, batches: Any) -> Tensor:
    """(1, rows, n)."""
    found: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(
        lambda _, args, kwargs: found.append(first_input(args, kwargs).flatten(0, -2)),
        with_kwargs=True,
    )
    with torch.no_grad():
        for batch in batches:
            call(model, batch)
    handle.remove()
    return torch.cat(found).unsqueeze(0)


def _moments(x: Tensor, known: Stats) -> dict[str, Stats | None]:
    """What is kept: sketches of several shares, the diagonal alone, nothing."""
    n = x.shape[-1]
    assert known.mean is not None
    found: dict[str, Stats | None] = {
        f"sketch of {share:.4f}": replace(
            known, moment=SketchedMoment.of(x, round(share * n)) / x.shape[1]
        )
        for share in SHARES
    }
    diagonal = (x.double().square().mean(1) - known.mean.square())[0]  # centred, (n,)
    return found | {"diagonal": replace(known, moment=diagonal, mean=None), "nothing": None}


def study() -> dict[str, Any]:
    """The error beside that with the whole moment; a row a layer, size and what is kept."""
    torch.set_num_threads(int(os.environ.get("THREADS", "2")))
    network = case()
    data = list(network.calibration)[::4]
    sites, stats = find_sites(network.model)[0], bz.collect(network.model, data)
    rows: list[dict[str, Any]] = []
    for path in LAYERS:
        m, known = sites[path].map, stats[path]
        x, whole, method = _inputs(network.model, path, data), Objective(m, known), LowRank()
        for name, kept in _moments(x, known).items():
            for keep in KEEPS:
                size = method.most(m, keep)
                layer = method.build(m, size, 0)
                method.fit_(layer, Objective(m, kept))
                error = whole.error(whole.w - method.weight(layer, m))
                ratio = (error / method.errors(whole, [size])[0]) ** 0.5
                rows.append({"layer": path, "kept": name, "keep": keep, "error": round(ratio, 4)})
    table: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row["kept"] for row in rows):
        for keep in KEEPS:
            found = [r["error"] for r in rows if (r["kept"], r["keep"]) == (name, keep)]
            place = f"{round(100 * keep)}"
            table.setdefault(name.replace(" ", "_").replace(".", "_"), {})[place] = max(found)
    return {"rows": rows, "table": table, "calibration": "256 sentences", "seed": 0}


BENCHMARKS: dict[str, Any] = {"wide-moments": study}
