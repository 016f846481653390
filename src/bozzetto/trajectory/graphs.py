"""Graphs: scenes as tensors, each agent in its own frame, each edge in its target's."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bozzetto.trajectory.centrelines import AHEAD
from bozzetto.trajectory.labels import MODES, UNKNOWN, label
from bozzetto.trajectory.recording import KINDS, Recording
from bozzetto.trajectory.scenes import PAST, RATE, Scene, scenes_of

__all__ = ["EDGE", "NODE", "Graph", "batched", "counted", "graph_of", "joined", "past_of"]

NEIGHBOURS, REACH = 8, 60.0  # candidate edges: to so many nearest agents, within so many metres
NODE = PAST * 6 + 2 + len(KINDS) + 3 * AHEAD
EDGE = 18
_TEN = 10.0  # metres and metres a second become of the order of one
_SOON = 10.0  # seconds: a later approach counts as this
_STILL = 0.1  # metres a step, below which a displacement tells no heading

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Graph:
    """One scene, or several joined, for the network and its loss.

    Attributes:
        nodes: features, (n, NODE).
        edges: features, (e, EDGE).
        source, target: of every edge, (e,): the target decides its mode towards the source.
        future, known: in the agents' frames, (n, FUTURE, 2), and whether known, (n, FUTURE).
        modes: labels, (e,).
        pose: x, y and heading of every agent's frame, (n, 3), float64.
    """

    nodes: Tensor
    edges: Tensor
    source: Tensor
    target: Tensor
    future: Tensor
    known: Tensor
    modes: Tensor
    pose: Tensor

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the network takes."""
        return self.nodes, self.edges, self.source, self.target

    def batch(self) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """A batch as `bozzetto.train` takes it: inputs, and what the loss needs."""
        return self.inputs, {"future": self.future, "known": self.known, "modes": self.modes}


def graph_of(scene: Scene) -> Graph:
    """The graph of a scene, with the labels of its edges."""
    edges = _neighbours(scene.past[:, -1])
    future = _into(scene, scene.future)
    return Graph(
        nodes=torch.from_numpy(_node_features(scene)).float(),
        edges=torch.from_numpy(_edge_features(scene, edges)).float(),
        source=torch.from_numpy(edges[0]),
        target=torch.from_numpy(edges[1]),
        future=torch.from_numpy(np.where(scene.known[..., None], future, 0.0)).float(),
        known=torch.from_numpy(scene.known),
        modes=torch.from_numpy(label(scene, edges)),
        pose=torch.from_numpy(np.column_stack([scene.past[:, -1], scene.heading])),
    )


def joined(graphs: Sequence[Graph]) -> Graph:
    """Several graphs as one that has no edges between them."""
    sizes = torch.tensor([0, *(len(g.nodes) for g in graphs)]).cumsum(0)[:-1]
    parts = {f.name: [getattr(g, f.name) for g in graphs] for f in fields(Graph)}
    for name in ("source", "target"):
        parts[name] = [part + size for part, size in zip(parts[name], sizes, strict=True)]
    return Graph(**{name: torch.cat(part) for name, part in parts.items()})


def batched(graphs: Iterable[Graph], size: int) -> Iterator[Graph]:
    """Graphs in order, joined `size` at a time."""
    group: list[Graph] = []
    for graph in graphs:
        group.append(graph)
        if len(group) == size:
            yield joined(group)
            group = []
    if group:
        yield joined(group)


def counted(recording: Recording, *, every: float = 1.0) -> dict[str, object]:
    """What a recording gives to learn from: scenes, agents, and edges of every mode."""
    scenes = list(scenes_of([recording], every=every))
    labels = [label(scene, _neighbours(scene.past[:, -1])) for scene in scenes]
    found = np.concatenate([np.zeros(0, int), *labels])
    modes = {mode: int((found == m).sum()) for m, mode in enumerate(MODES)}
    agents = sum(scene.agents for scene in scenes)
    left_out = sum(scene.left_out for scene in scenes)
    row: dict[str, object] = {"recording": recording.name, "scenes": len(scenes), "agents": agents}
    return row | {"left_out": left_out} | modes | {"unknown": int((found == UNKNOWN).sum())}


def past_of(nodes: Tensor) -> Tensor:
    """The past positions in the features, in the agents' frames, metres; (n, PAST, 2)."""
    return nodes[:, : 6 * PAST].unflatten(-1, (PAST, 6))[..., :2] * _TEN


def _neighbours(xy: Floats) -> Ints:
    """Sources and targets of the candidate edges, (2, e)."""
    far = np.hypot(*(xy[:, None] - xy).transpose(2, 0, 1))
    np.fill_diagonal(far, np.inf)
    nearest = far.argsort(1, kind="stable")[:, :NEIGHBOURS]
    target = np.repeat(np.arange(len(xy)), nearest.shape[1])
    source = nearest.ravel()
    close = far[target, source] <= REACH
    return np.stack([source[close], target[close]])


def _rotation(heading: Floats) -> Floats:
    """From the world's axes into those of each heading; (n, 2, 2)."""
    c, s = np.cos(heading), np.sin(heading)
    return np.stack([np.stack([c, s], -1), np.stack([-s, c], -1)], -2)


def _into(scene: Scene, points: Floats) -> Floats:
    """Points of each agent, (a, p, 2), in its own frame."""
    return np.einsum("akl,apl->apk", _rotation(scene.heading), points - scene.past[:, -1:])


def _velocity(scene: Scene) -> Floats:
    """Now, from the last displacement, in the world's axes; (a, 2)."""
    return (scene.past[:, -1] - scene.past[:, -2]) * RATE


def _node_features(scene: Scene) -> Floats:
    past, lane = _into(scene, scene.past), _into(scene, scene.lane)
    moved = np.diff(past, axis=1, prepend=past[:, :1])
    speed = np.hypot(moved[..., 0], moved[..., 1])
    still = speed < _STILL
    unit = np.where(still[..., None], [1.0, 0.0], moved / np.maximum(speed, _STILL)[..., None])
    steps = [past / _TEN, unit, speed[..., None] * (RATE / _TEN), scene.seen[..., None]]
    kinds = np.eye(len(KINDS))[scene.kind]
    flat = [np.concatenate(steps, -1), lane / (2 * _TEN), scene.mapped]
    rows = [part.reshape(scene.agents, -1) for part in flat]
    return np.concatenate([*rows, scene.size / _TEN, kinds], 1)


def _edge_features(scene: Scene, edges: Ints) -> Floats:
    j, i = edges
    turn, velocity = _rotation(scene.heading), _velocity(scene)
    apart = np.einsum("ekl,el->ek", turn[i], scene.past[j, -1] - scene.past[i, -1])
    closing = np.einsum("ekl,el->ek", turn[i], velocity[j] - velocity[i])
    between = scene.heading[j] - scene.heading[i]
    when = -(apart * closing).sum(1) / np.maximum((closing**2).sum(1), 1e-2)
    when = np.clip(when, 0.0, _SOON)
    nearest = np.hypot(*(apart + when[:, None] * closing).T)
    scalars = [np.cos(between), np.sin(between), np.hypot(*apart.T) / _TEN, when / _SOON]
    ahead, behind = _along(scene, j, i), _along(scene, i, j)
    crossing = _crossing(scene, j, i)
    parts = [apart / _TEN, closing / _TEN, np.stack([*scalars, nearest / _TEN], 1)]
    size = scene.size[j] / _TEN
    return np.concatenate([*parts, ahead, behind, crossing, size], 1)


def _paths(scene: Scene) -> Floats:
    """Every agent's place and the lane ahead of it, (a, AHEAD + 1, 2)."""
    return np.concatenate([scene.past[:, -1:], scene.lane], 1)


def _along(scene: Scene, j: Ints, i: Ints) -> Floats:
    """Where j is along the lane ahead of i and beside it, in tens of metres; (e, 2).

    Beyond the ends of the lane the length grows with the distance, so that a follower reads < 0.
    """
    path = _paths(scene)[i]  # (e, p, 2)
    start, step = path[:, :-1], np.diff(path, axis=1)
    length = np.maximum(np.hypot(step[..., 0], step[..., 1]), 1e-6)
    unit = step / length[..., None]
    to = scene.past[j, -1][:, None] - start
    place = (to * unit).sum(-1)  # (e, p - 1)
    low = np.zeros_like(length)
    low[:, 0] = -np.inf  # the first piece goes on backwards, the last forwards
    high = length.copy()
    high[:, -1] = np.inf
    place = np.clip(place, low, high)
    side = to[..., 1] * unit[..., 0] - to[..., 0] * unit[..., 1]
    off = to - place[..., None] * unit
    far = np.hypot(off[..., 0], off[..., 1])
    best = far.argmin(1)
    row = np.arange(len(i))
    before = np.cumsum(length, 1) - length
    along = before[row, best] + place[row, best]
    return np.stack([along, np.copysign(far[row, best], side[row, best])], 1) / _TEN


def _crossing(scene: Scene, j: Ints, i: Ints) -> Floats:
    """How near the lanes ahead of both come, and how far along each; tens of metres, (e, 3)."""
    mine, other = _denser(_paths(scene)), _denser(_paths(scene))
    far = np.hypot(*(mine[i][:, :, None] - other[j][:, None]).transpose(3, 0, 1, 2))  # (e, p, p)
    points = far.shape[1]
    # Where two lanes merge many places are equally near: the first one counts.
    best = (far + 1e-3 * (np.arange(points)[:, None] + np.arange(points))).reshape(
        len(i), points**2
    )
    first = best.argmin(1)
    a, b = np.divmod(first, points)
    nearest = far.reshape(len(i), points**2)[np.arange(len(i)), first]
    spacing = 0.75 / 2  # tens of metres between points of the denser paths
    return np.stack([np.minimum(nearest, 30.0) / _TEN, a * spacing, b * spacing], 1)


def _denser(path: Floats) -> Floats:
    """With the middles between the points."""
    middle = (path[:, 1:] + path[:, :-1]) / 2
    both = np.empty((len(path), 2 * path.shape[1] - 1, 2))
    both[:, ::2], both[:, 1::2] = path, middle
    return both
