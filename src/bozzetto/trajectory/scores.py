"""Scores: how far predicted paths are from the true ones, and how well the modes are told.

Conventions of the Argoverse and av2 packages: the displacement error is the distance of points of
one time, its mean over a path the ADE, that of the last point the FDE; a miss is an FDE over 2 m.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bozzetto.trajectory.graphs import Graph, past_of
from bozzetto.trajectory.labels import IGNORING, MODES, UNKNOWN, YIELDING
from bozzetto.trajectory.network import Output
from bozzetto.trajectory.scenes import FUTURE, RATE

__all__ = ["HORIZONS", "MISS", "SUBSETS", "Scores", "score"]

HORIZONS = (1, 2, 3, 4, 5)  # seconds
MISS = 2.0  # metres
SUBSETS: tuple[str, ...] = ("all", "moving", "yielding", "crossing")
_MOVING = 1.0  # m/s
_CROSSING = 0.7  # cosine of the angle between headings, below which they cross
_TOLD = 0.1  # metres a step, from which its displacement tells the direction

Predict = Callable[[Graph], Output]


@dataclass(frozen=True)
class Scores:
    """Errors of every agent whose whole future is known, and counts of modes.

    Attributes:
        errors: distances at all steps, (n, FUTURE).
        along, across: of the true direction of travel at 5 s, signed, (n,).
        subsets: which agents are in a subset, (n,) each.
        confusion: edges by true and predicted mode, (3, 3); None without predicted modes.
    """

    errors: Tensor
    along: Tensor
    across: Tensor
    subsets: dict[str, Tensor]
    confusion: Tensor | None

    def ade(self, seconds: int = 5, subset: str = "all") -> float:
        """Mean error over all steps up to a time; NaN for a subset without agents."""
        return float(self.errors[self.subsets[subset], : seconds * RATE].mean())

    def fde(self, seconds: int = 5, subset: str = "all") -> float:
        """Mean error at a time."""
        return float(self.errors[self.subsets[subset], seconds * RATE - 1].mean())

    def modes(self) -> dict[str, tuple[float, float, float]]:
        """Precision, recall and F1 of every mode; NaN where nothing was to find."""
        if self.confusion is None:
            return {}
        hits = self.confusion.diagonal()
        precision, recall = hits / self.confusion.sum(0), hits / self.confusion.sum(1)
        f1 = 2 * hits / (self.confusion.sum(0) + self.confusion.sum(1))
        triples = torch.stack([precision, recall, f1], 1).tolist()
        return {mode: (p, r, f) for mode, (p, r, f) in zip(MODES, triples, strict=True)}

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the modes; NaN without predicted modes."""
        found = [f1 for _, _, f1 in self.modes().values()]
        return sum(found) / len(found) if found else float("nan")

    def rows(self) -> list[dict[str, object]]:
        """A row for every subset."""
        return [self._row(name, chosen) for name, chosen in self.subsets.items()]

    def _row(self, name: str, chosen: Tensor) -> dict[str, object]:
        row: dict[str, object] = {"agents": name, "count": int(chosen.sum())}
        row |= {f"ade_{s}s": self.ade(s, name) for s in HORIZONS}
        row |= {f"fde_{s}s": self.fde(s, name) for s in HORIZONS}
        row["along"] = float(self.along[chosen].abs().mean())
        row["across"] = float(self.across[chosen].abs().mean())
        row["missed"] = float((self.errors[chosen, -1] > MISS).float().mean())
        return row

    def mode_rows(self) -> list[dict[str, object]]:
        """A row for every mode."""
        counts = torch.zeros(len(MODES)) if self.confusion is None else self.confusion.sum(1)
        return [
            {"mode": mode, "edges": int(n), "precision": p, "recall": r, "f1": f}
            for n, (mode, (p, r, f)) in zip(counts, self.modes().items(), strict=False)
        ]

    def figure(self, ax: Any) -> None:
        """Mean error of each subset over time."""
        time = [(step + 1) / RATE for step in range(FUTURE)]
        for name, chosen in self.subsets.items():
            if chosen.any():
                ax.plot(time, self.errors[chosen].mean(0).tolist(), label=name)
        ax.set_xlabel("seconds ahead")
        ax.set_ylabel("mean displacement error, m")
        ax.legend()


@torch.no_grad()
def score(predict: Predict, graphs: Iterable[Graph], *, modes: bool = True) -> Scores:
    """Scores of a predictor on scenes.

    Args:
        predict: what gives paths and logits of a graph.
        graphs: with futures and labels.
        modes: whether its logits mean something.

    Raises:
        ValueError: if no agent's future is known for five seconds, or a prediction is not finite.
    """
    parts: list[tuple[Tensor, ...]] = []
    confusion = torch.zeros(len(MODES), len(MODES), dtype=torch.float64)
    for graph in graphs:
        output = predict(graph)
        if not bool(output.paths.isfinite().all()):
            raise ValueError("predicted paths need to be finite; got NaN or infinity")
        parts.append(_agents(graph, output.paths))
        known = graph.modes != UNKNOWN
        place = graph.modes[known] * len(MODES) + output.logits.argmax(-1)[known]
        confusion += place.bincount(minlength=len(MODES) ** 2).view(len(MODES), -1)
    if not parts or not (columns := [torch.cat(c) for c in zip(*parts, strict=True)])[0].numel():
        raise ValueError("scores need agents whose future is known for 5 s; there are none")
    errors, along, across, *members = columns
    subsets = dict(zip(SUBSETS, members, strict=True))
    return Scores(errors, along, across, subsets, confusion if modes else None)


def _agents(graph: Graph, paths: Tensor) -> tuple[Tensor, ...]:
    """Errors, along, across and the membership in each subset, of agents known to the end."""
    whole = graph.known.all(1)
    off = paths - graph.future
    direction = _direction(graph)
    along = (off[:, -1] * direction).sum(-1)
    across = off[:, -1, 1] * direction[:, 0] - off[:, -1, 0] * direction[:, 1]
    columns = (off.norm(dim=-1), along, across, *_subsets(graph))
    return tuple(column[whole] for column in columns)


def _direction(graph: Graph) -> Tensor:
    """Of the last step of each true path that moves, in its own frame; ahead where none does."""
    start = torch.zeros_like(graph.future[:, :1])
    step = torch.cat([start, graph.future], 1).diff(dim=1)  # (n, FUTURE, 2)
    moves = step.norm(dim=-1) > _TOLD
    last = torch.where(moves, torch.arange(FUTURE), -1).amax(1)
    chosen = step[torch.arange(len(step)), last.clamp(min=0)]
    ahead = torch.tensor([1.0, 0.0]).expand_as(chosen)
    return torch.nn.functional.normalize(torch.where((last >= 0)[:, None], chosen, ahead), dim=-1)


def _subsets(graph: Graph) -> tuple[Tensor, ...]:
    past, n = past_of(graph.nodes), len(graph.nodes)
    moving = (past[:, -1] - past[:, -2]).norm(dim=-1) * RATE > _MOVING
    between = (graph.pose[graph.source, 2] - graph.pose[graph.target, 2]).cos()
    meets = (graph.modes != UNKNOWN) & (graph.modes != IGNORING) & (between < _CROSSING)
    everyone = torch.ones(n, dtype=torch.bool)
    return everyone, moving, _any(graph, graph.modes == YIELDING), _any(graph, meets)


def _any(graph: Graph, edges: Tensor) -> Tensor:
    """Which agents are the target of one of the edges; (n,)."""
    found = torch.zeros(len(graph.nodes), dtype=torch.bool)
    found[graph.target[edges]] = True
    return found
