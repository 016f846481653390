"""Joint interaction and trajectory prediction on real tracks of ../shared/data/driving.

Held out are the last quarter of the three MONA places (their recordings are cut into minutes) and
every third NGSIM recording of streets; US-101 only teaches, as its recordings overlap. The networks
learn from all others, each with several seeds. A run that was interrupted goes on: every trained
network is kept in benchmarks/cache/trajectory. `python benchmarks/trajectory.py KIND SEED …` trains
some.

Recipes are chosen without the test: `python benchmarks/trajectory.py choose KIND SEED …` holds VAL
out of what teaches, too, and prints the errors there.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import ttest_rel

from bozzetto import trajectory as tj

DATA = Path(__file__).parents[1] / ".." / "shared" / "data" / "driving" / "real.npz"
CACHE = Path(__file__).parent / "cache" / "trajectory"
TEST = (
    "MONA-*/[67]",
    *(f"USA_Lanker-2_{n}_T-1" for n in (10, 13, 16, 20, 25)),
    "USA_Peach-2_1_T-1",
    "USA_Peach-4_3_T-1",
)
VAL = (
    "MONA-*/5",
    *(f"USA_Lanker-2_{n}_T-1" for n in (6, 12, 15, 17)),
    "USA_Peach-4_1_T-1",
)
SEEDS = range(10)
KINDS: tuple[tj.Kind, ...] = ("joint", "graph", "alone")
EPOCHS = 10  # over scenes and their mirror images


def graphs(part: str) -> list[tj.Graph]:
    """Of "train" (a scene every half second, and its mirror image) or "test" (every second)."""
    file = CACHE / f"{part}.safetensors"
    if not file.exists():
        keep(file, _made(part, ()))
    return kept(file)


def _made(part: str, val: Sequence[str]) -> list[tj.Graph]:
    chosen = tj.split(tj.cut(tj.load(DATA), seconds=60), test=TEST, val=val)
    every = 0.5 if part == "train" else 1.0
    scenes = list(tj.scenes_of(getattr(chosen, part), every=every))
    if part == "train":
        scenes += [tj.mirrored(scene) for scene in scenes]
    return [tj.graph_of(scene) for scene in scenes]


def choose(kind: tj.Kind, seed: int) -> tj.Scores:
    """Scores on VAL of a network that learned from neither VAL nor TEST."""
    predictor = tj.fresh(tj.Shape(kind), seed=seed)
    tj.fit(predictor, _made("train", VAL), replace(tj.RECIPE, epochs=EPOCHS, seed=seed))
    return tj.score(network(predictor), tj.batched(_made("val", VAL), 16), modes=kind == "joint")


def keep(file: Path, made: Sequence[tj.Graph]) -> None:
    whole = tj.joined(made)
    sizes = torch.tensor([(len(g.nodes), len(g.edges)) for g in made])
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{time.time_ns()}")
    save_file(
        {f.name: getattr(whole, f.name) for f in fields(tj.Graph)} | {"sizes": sizes}, partial
    )
    partial.replace(file)


def kept(file: Path) -> list[tj.Graph]:
    data = load_file(file)
    nodes, edges = data.pop("sizes").T.tolist()
    starts = torch.tensor([0, *nodes]).cumsum(0)[:-1]
    by_edge = {"edges", "source", "target", "modes"}
    parts = {k: v.split(edges if k in by_edge else nodes) for k, v in data.items()}
    for name in ("source", "target"):
        parts[name] = tuple(p - s for p, s in zip(parts[name], starts, strict=True))
    return [tj.Graph(**{k: v[n] for k, v in parts.items()}) for n in range(len(nodes))]


def trained(kind: tj.Kind, seed: int) -> tuple[tj.Predictor, float]:
    """A network and the CPU-seconds of its training, from the cache where it is there."""
    folder = CACHE / f"{EPOCHS}-{kind}-{seed}"
    if not (folder / "seconds").exists():
        predictor = tj.fresh(tj.Shape(kind), seed=seed)
        began = time.process_time()
        tj.fit(predictor, graphs("train"), replace(tj.RECIPE, epochs=EPOCHS, seed=seed))
        tj.save_predictor(folder, predictor)
        (folder / "seconds").write_text(str(time.process_time() - began))
    return tj.load_predictor(folder), float((folder / "seconds").read_text())


def network(predictor: tj.Predictor) -> Callable[[tj.Graph], tj.Output]:
    return lambda graph: predictor(*graph.inputs)


def oracle(predictor: tj.Predictor) -> Callable[[tj.Graph], tj.Output]:
    """The joint network with the true modes given, where they are known."""
    return lambda graph: predictor(*graph.inputs, graph.modes)


def seeds() -> dict[str, list[tj.Scores]]:
    """Scores of every contestant and seed on the held-out recordings."""
    judge = [tj.joined(graphs("test")[i : i + 16]) for i in range(0, len(graphs("test")), 16)]
    found = {name: [tj.score(b, judge, modes=False)] for name, b in tj.BASELINES.items()}
    for kind in KINDS:
        made = [trained(kind, seed)[0] for seed in SEEDS]
        found[kind] = [tj.score(network(p), judge, modes=kind == "joint") for p in made]
        if kind == "joint":
            found["joint, true modes"] = [tj.score(oracle(p), judge, modes=False) for p in made]
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "low": min(values), "high": max(values)}


def trajectory() -> dict[str, Any]:
    found = seeds()
    straight = found["constant velocity"][0].fde()
    rows = []
    for name, scores in found.items():
        row: dict[str, Any] = {"predictor": name, "seeds": len(scores)}
        row |= {f"fde_{s}s": spread([x.fde(s) for x in scores]) for s in tj.HORIZONS}
        row |= {f"ade_{s}s": spread([x.ade(s) for x in scores]) for s in tj.HORIZONS}
        row |= {f"fde_{part}": spread([x.fde(5, part) for x in scores]) for part in tj.SUBSETS}
        row["of_constant_velocity"] = spread([x.fde() / straight for x in scores])
        row["missed"] = spread([float((x.errors[:, -1] > tj.MISS).float().mean()) for x in scores])
        row["along"] = spread([float(x.along.abs().mean()) for x in scores])
        row["across"] = spread([float(x.across.abs().mean()) for x in scores])
        if scores[0].confusion is not None:
            row["macro_f1"] = spread([x.macro_f1 for x in scores])
            row["modes"] = scores[0].mode_rows()
        rows.append(row)
    pairs = [("joint", "graph"), ("graph", "alone"), ("joint", "joint, true modes")]
    tests = [_paired(found, *pair) for pair in pairs] + [_paired(found, *pairs[0], "yielding")]
    cost = [
        {
            "kind": kind,
            "params": sum(p.numel() for p in trained(kind, 0)[0].parameters()),
            "cpu_seconds": spread([trained(kind, seed)[1] for seed in SEEDS]),
        }
        for kind in KINDS
    ]
    counts = {part: int(x.sum()) for part, x in found["joint"][0].subsets.items()}
    head = {"test": list(TEST), "epochs": EPOCHS, "agents": counts}
    return head | {"rows": rows, "paired": tests, "cost": cost}


def _paired(
    found: dict[str, list[tj.Scores]], better: str, worse: str, agents: str = "all"
) -> dict[str, Any]:
    """Paired t-test over seeds of the FDE at 5 s, and how the spreads lie."""
    a, b = ([scores.fde(5, agents) for scores in found[name]] for name in (better, worse))
    test = ttest_rel(a, b)
    return {
        "agents": agents,
        "better": better,
        "worse": worse,
        "difference": float(np.mean(a) - np.mean(b)),
        "t": float(test.statistic),
        "p": float(test.pvalue),
        "outside_the_spread": max(a) < min(b),
    }


def labels() -> dict[str, Any]:
    """What the auto-labelling function finds, place by place, in a scene every two seconds."""
    places: dict[str, dict[str, Any]] = {}
    for recording in tj.load(DATA):
        name = "NGSIM-US101" if "US101" in recording.group else recording.group
        place = places.setdefault(name, {"recordings": 0})
        place["recordings"] += 1
        for column, count in tj.counted(recording, every=2.0).items():
            if isinstance(count, int):
                place[column] = place.get(column, 0) + count
    return {"every": 2.0, "rows": [{"place": name} | row for name, row in places.items()]}


BENCHMARKS = {"trajectory": trajectory, "trajectory-labels": labels}

if __name__ == "__main__":
    for kind in KINDS:
        for seed in [int(a) for a in sys.argv[1:] if a.isdigit()] or SEEDS:
            if kind in sys.argv and "choose" in sys.argv:
                found = choose(kind, seed)
                print(kind, seed, f"FDE {found.fde():.3f} m, macro-F1 {found.macro_f1:.4f}")
            elif kind in sys.argv:
                trained(kind, seed)
