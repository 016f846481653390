"""The animated page: scenes with predicted paths and the modes as coloured arrows, in one file."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bozzetto.trajectory.graphs import Graph, graph_of
from bozzetto.trajectory.labels import GOING, MODES, YIELDING
from bozzetto.trajectory.network import Output
from bozzetto.trajectory.recording import Lanes
from bozzetto.trajectory.scenes import FUTURE, PAST, RATE, Scene

__all__ = ["View", "view", "world", "write_page"]

_MARGIN = 30.0  # metres around the vehicles
_SURE = 0.5  # probability from which a mode is drawn

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class View:
    """A scene, the lanes under it and what was predicted.

    Attributes:
        scene: with the truth where it is known.
        lanes: of its recording.
        paths: predicted, in the recording's frame; (a, FUTURE, 2).
        edges: sources and targets, (2, e).
        modes: probabilities, (e, 3).
    """

    scene: Scene
    lanes: Lanes
    paths: Floats
    edges: NDArray[np.int64]
    modes: Floats

    def to_dict(self) -> dict[str, Any]:
        """The prediction, ready for JSON: paths in the recording's frame, modes by pair."""
        scene, ids = self.scene, self.scene.ids
        pairs = zip(self.edges.T.tolist(), self.modes.tolist(), strict=True)
        return {
            "recording": scene.recording,
            "frame": scene.frame,
            "left_out": scene.left_out,
            "paths": {name: _points(path) for name, path in zip(ids, self.paths, strict=True)},
            "modes": [
                {"agent": ids[i], "towards": ids[j]}
                | {mode: round(p, 4) for mode, p in zip(MODES, row, strict=True)}
                for (j, i), row in pairs
            ],
        }


def world(graph: Graph, paths: Tensor) -> Floats:
    """Paths in the agents' frames, (n, t, 2), in the recording's, float64."""
    pose = graph.pose
    cos, sin = pose[:, 2].cos()[:, None], pose[:, 2].sin()[:, None]
    x, y = paths.double().unbind(-1)
    turned = torch.stack([x * cos - y * sin, x * sin + y * cos], -1)
    return (turned + pose[:, None, :2]).numpy()


@torch.no_grad()
def view(scene: Scene, lanes: Lanes, predict: Callable[[Graph], Output]) -> View:
    """What a predictor makes of a scene.

    Raises:
        ValueError: if a prediction is not finite.
    """
    graph = graph_of(scene)
    output = predict(graph)
    if not all(bool(part.isfinite().all()) for part in output):
        raise ValueError("predicted paths and modes need to be finite; got NaN or infinity")
    edges = torch.stack([graph.source, graph.target]).numpy()
    modes = output.logits.softmax(-1).double().numpy()
    return View(scene, lanes, world(graph, output.paths), edges, modes)


def write_page(path: Path, views: Sequence[View], *, title: str) -> Path:
    """Write a page that shows scenes one after the other; it needs nothing from elsewhere.

    Raises:
        ValueError: if there are no scenes.
    """
    if not views:
        raise ValueError("a page needs at least one scene; got none")
    page = files("bozzetto.trajectory").joinpath("scene.html").read_text(encoding="utf-8")
    data = {"rate": RATE, "past": PAST, "future": FUTURE, "scenes": [_drawn(v) for v in views]}
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = page.replace("{{ title }}", escape(title)).replace("{{ data }}", text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _drawn(view: View) -> dict[str, Any]:
    """A scene as numbers for the page: metres from its middle, to the centimetre."""
    scene = view.scene
    now = scene.past[:, -1]
    middle = (now.min(0) + now.max(0)) / 2
    reach = float(np.abs(now - middle).max()) + _MARGIN
    boxes = [(line.min(0) - middle, line.max(0) - middle) for line in view.lanes.lines]
    near = [bool((low < reach).all() and (high > -reach).all()) for low, high in boxes]
    lines = [line for line, shown in zip(view.lanes.lines, near, strict=True) if shown]
    without = f", without {scene.left_out} vehicles farther out" if scene.left_out else ""
    return {
        "title": f"{scene.recording}, frame {scene.frame}{without}",
        "lanes": [_points(line - middle) for line in lines],
        "agents": [_agent(view, i, middle) for i in range(scene.agents)],
        "modes": _arrows(view),
    }


def _agent(view: View, i: int, middle: Floats) -> dict[str, Any]:
    scene = view.scene
    known = int(scene.known[i].cumprod().sum())  # steps before the first that is missing
    unseen = int((~scene.seen[i]).sum())
    return {
        "id": scene.ids[i],
        "size": [round(float(side), 2) for side in scene.size[i]],
        "heading": round(float(scene.heading[i]), 4),
        "unseen": unseen,
        "past": _points(scene.past[i] - middle),
        "future": _points(scene.future[i, :known] - middle),
        "path": _points(view.paths[i] - middle),
    }


def _arrows(view: View) -> list[list[float]]:
    """Who goes before whom, each pair once: first, second, probability."""
    best: dict[tuple[int, int], float] = {}
    for (j, i), p in zip(view.edges.T.tolist(), view.modes, strict=True):
        for pair, chance in (((i, j), p[GOING]), ((j, i), p[YIELDING])):
            if chance > _SURE:
                best[pair] = max(best.get(pair, 0.0), float(chance))
    kept = {(a, b): c for (a, b), c in best.items() if c >= best.get((b, a), 0.0)}
    return [[first, second, round(chance, 3)] for (first, second), chance in sorted(kept.items())]


def _points(line: Floats) -> list[list[float]]:
    return np.round(line, 2).tolist()
