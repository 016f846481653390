"""The simulation study: what forced modes do to paths, on real roads and at simulated junctions.

Real: networks and held-out scenes of trajectory.py. Simulated: networks of their own, trained on
SUMO's junctions with priority (`pip install "bozzetto[sumo]"`), judged on traffic of other seeds.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from bozzetto import trajectory as tj
from bozzetto.trajectory.page import world
from trajectory import CACHE, EPOCHS, graphs, keep, kept, network, oracle, spread, trained

SECONDS = 240  # of simulated traffic, for each seed
CROSSING = 0.7  # cosine of the angle between headings, below which two cross
TOLD = 0.8  # chance of a mode to be told in training, at junctions
OPEN = 0.1  # probability of both orders from which a pair counts as open
PICTURE = Path(__file__).parents[1] / "docs" / "trajectory-forced.svg"
COLOURS = {tj.GOING: "#2f6f8f", tj.YIELDING: "#c2571a"}


def simulated(part: str) -> list[tj.Graph]:
    """Of "train" (six seeds, and mirror images) or "test" (three other seeds)."""
    file = CACHE / f"junctions-{part}.safetensors"
    if not file.exists():
        keep(file, [tj.graph_of(scene) for scene in scenes(part)])
    return kept(file)


def scenes(part: str) -> list[tj.Scene]:
    made: list[tj.Scene] = []
    seeds, every = (range(6), 1.0) if part == "train" else (range(6, 9), 2.0)
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            recording = tj.simulate(Path(folder) / str(seed), seconds=SECONDS, seed=seed)
            made += tj.scenes_of([recording], every=every)
    return made + ([tj.mirrored(scene) for scene in made] if part == "train" else [])


def _measured(
    networks: Sequence[tj.Predictor], judge: list[tj.Graph], every: int, cosine: float
) -> tuple[dict[str, Any], list[tj.Forced]]:
    whole = list(tj.batched(judge, 16))
    own = [tj.score(network(p), whole) for p in networks]
    known = [tj.score(oracle(p), whole, modes=False) for p in networks]
    found = [tj.study(p, judge[::every], most=10_000, cosine=cosine) for p in networks]
    rows = [
        {
            "forced": mode,
            "travelled": spread([float(f.travelled[:, m].mean()) for f in found]),
            "shift_at_5s": spread([float(f.shift[:, m, -1].mean()) for f in found]),
        }
        for m, mode in enumerate(tj.MODES)
    ]
    result = {
        "pairs": len(found[0].travelled),
        "open": [int(f.open(OPEN).sum()) for f in found],
        "sensible": spread([f.sensible() for f in found]),
        "sensible_where_it_went": spread([f.sensible(f.labels == tj.GOING) for f in found]),
        "sensible_where_it_yielded": spread([f.sensible(f.labels == tj.YIELDING) for f in found]),
        "fde": spread([s.fde() for s in own]),
        "fde_true_modes": spread([s.fde() for s in known]),
        "macro_f1": spread([s.macro_f1 for s in own]),
        "rows": rows,
    }
    return result, found


def forced() -> dict[str, Any]:
    """Each mode forced on every pair that met, in turn; the seeds' spread; two pictures."""
    real = [trained("joint", seed)[0] for seed in range(3)]
    junctions = [_of_junctions(seed) for seed in range(2)]
    on_roads, roads = _measured(real, graphs("test"), 24, 1.0)
    at_junctions, crossings = _measured(junctions, simulated("test"), 1, CROSSING)
    _picture(roads[0], crossings[0], junctions[0])
    return {"open_from": OPEN, "real": on_roads, "simulated": at_junctions, "rows": []}


def _of_junctions(seed: int) -> tj.Predictor:
    folder = CACHE / f"{EPOCHS}-junctions-{seed}"
    if not folder.exists():
        predictor = tj.fresh(seed=seed)
        tj.fit(predictor, simulated("train"), replace(tj.RECIPE, epochs=6, seed=seed), told=TOLD)
        tj.save_predictor(folder, predictor)
    return tj.load_predictor(folder)


def _picture(roads: tj.Forced, crossings: tj.Forced, predictor: tj.Predictor) -> None:
    """Shifts over time, and one simulated pair whose target is told to go and to yield."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    axes = figure.subplots(1, 3)
    for ax, found, name in [(axes[0], roads, "real roads"), (axes[1], crossings, "junctions")]:
        found.figure(ax)
        ax.set_title(name)
    _pair(axes[2], predictor)
    with mpl.rc_context({"svg.hashsalt": "forced", "svg.fonttype": "none"}):
        figure.savefig(PICTURE, metadata={"Date": None})


def _pair(ax: Any, predictor: tj.Predictor) -> None:
    """The crossing pair of the held-out traffic in which the modes differ most."""
    best: tuple[float, tj.Graph, int] | None = None
    for graph in simulated("test"):
        with torch.no_grad():
            chances = predictor(*graph.inputs).logits.softmax(-1)
        turned = (graph.pose[graph.source, 2] - graph.pose[graph.target, 2]).cos() < CROSSING
        meets = chances[:, tj.IGNORING] < 1 - OPEN
        for edge in (turned & meets).nonzero().flatten().tolist():
            ends = [_told(predictor, graph, edge, mode)[:, -1] for mode in COLOURS]
            apart = float(np.hypot(*(ends[0] - ends[1])[graph.target[edge]]))
            if best is None or apart > best[0]:
                best = apart, graph, edge
    if best is None:
        raise ValueError("no simulated pair crosses and meets")
    _, graph, edge = best
    pair = {"target": int(graph.target[edge]), "source": int(graph.source[edge])}
    for mode, colour in COLOURS.items():
        paths = _told(predictor, graph, edge, mode)
        for who, n in pair.items():
            style = "o-" if who == "target" else "s:"
            label = f"{who}, when the target is {tj.MODES[mode]}"
            ax.plot(*paths[n].T, style, color=colour, markersize=3, label=label)
    for n in pair.values():
        ax.plot(*graph.pose[n, :2], "k^")
    ax.set_aspect("equal", "datalim")
    ax.set_title("one pair at a junction, metres")
    ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12))


def _told(predictor: tj.Predictor, graph: tj.Graph, edge: int, mode: int) -> Any:
    return world(graph, tj.force(predictor, graph, edge, mode).paths)


BENCHMARKS = {"trajectory-forced": forced}
