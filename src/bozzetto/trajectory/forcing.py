"""The simulation study: what becomes of the paths when the mode of one pair is forced.

If modes mean something, an agent that is told to yield to another is later where their ways meet,
and one that is told to go is earlier (section "Simulation" of Lee et al. 2019, arXiv 1912.07882).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bozzetto.trajectory.graphs import Graph
from bozzetto.trajectory.labels import GOING, MODES, UNKNOWN, YIELDING
from bozzetto.trajectory.network import Output, Predictor
from bozzetto.trajectory.scenes import FUTURE, RATE

__all__ = ["Forced", "force", "study"]


@torch.no_grad()
def force(predictor: Predictor, graph: Graph, edge: int, mode: int) -> Output:
    """The prediction if the target of one edge had a mode towards its source.

    The source gets the mode that goes with it, where that edge exists.
    """
    other = {GOING: YIELDING, YIELDING: GOING}.get(mode, mode)
    source, target = graph.source[edge], graph.target[edge]
    modes = torch.full_like(graph.modes, UNKNOWN)
    modes[(graph.source == target) & (graph.target == source)] = other
    modes[edge] = mode
    return predictor(*graph.inputs, modes)


@dataclass(frozen=True)
class Forced:
    """How far agents come when one mode is forced, over pairs that did meet.

    Attributes:
        travelled: of the target in 5 s, metres, by pair and by forced mode; (p, 3).
        shift: of the target's path against its own prediction, by time; (p, 3, FUTURE), metres
            along its way: negative is later.
        own: what the network itself thinks of the pair's modes, probabilities; (p, 3).
        labels: the modes that the pairs had; (p,).
    """

    travelled: Tensor
    shift: Tensor
    own: Tensor
    labels: Tensor

    def open(self, least: float = 0.1) -> Tensor:
        """Which pairs could have either order: the network gives both that probability; (p,)."""
        return self.own[:, [GOING, YIELDING]].amin(1) >= least

    def sensible(self, chosen: Tensor | None = None) -> float:
        """Share of pairs, (p,), whose target comes less far when it yields than when it goes.

        NaN where none is chosen; all by default.
        """
        chosen = self.travelled if chosen is None else self.travelled[chosen]
        return float((chosen[:, YIELDING] < chosen[:, GOING]).double().mean())

    def rows(self) -> list[dict[str, object]]:
        """A row for every forced mode."""
        return [
            {
                "forced": mode,
                "pairs": len(self.travelled),
                "travelled": float(self.travelled[:, m].mean()),
                "shift_at_5s": float(self.shift[:, m, -1].mean()),
            }
            for m, mode in enumerate(MODES)
        ]

    def figure(self, ax: Any) -> None:
        """Mean shift along the way over time, for every forced mode."""
        time = [(step + 1) / RATE for step in range(FUTURE)]
        for m, mode in enumerate(MODES):
            ax.plot(time, self.shift[:, m].mean(0).tolist(), label=mode)
        ax.set_xlabel("seconds ahead")
        ax.set_ylabel("shift along the way, m")
        ax.legend()


def study(
    predictor: Predictor, graphs: Iterable[Graph], *, most: int = 500, cosine: float = 1.0
) -> Forced:
    """Force each mode on pairs that were labelled going or yielding, one at a time.

    Args:
        predictor: a joint one.
        graphs: with labels.
        most: pairs.
        cosine: of the angle between headings, at most: 0.7 leaves pairs that cross.

    Raises:
        ValueError: if the network knows no modes, or no pair met.
    """
    if predictor.mode is None:
        raise ValueError(f"forcing needs a joint network; got kind={predictor.shape.kind!r}")
    travelled: list[Tensor] = []
    shift: list[Tensor] = []
    chances: list[Tensor] = []
    labels: list[Tensor] = []
    for graph in graphs:
        if len(travelled) >= most:
            break
        met = (graph.modes == GOING) | (graph.modes == YIELDING)
        met &= (graph.pose[graph.source, 2] - graph.pose[graph.target, 2]).cos() <= cosine
        with torch.no_grad():
            own = predictor(*graph.inputs)
        for edge in met.nonzero().flatten().tolist()[: most - len(travelled)]:
            i = int(graph.target[edge])
            forced = [force(predictor, graph, edge, m).paths[i] for m in range(len(MODES))]
            paths = torch.stack(forced)  # (3, FUTURE, 2)
            travelled.append(_lengths(paths)[:, -1])
            shift.append(_lengths(paths) - _lengths(own.paths[i][None]))
            chances.append(own.logits[edge].softmax(-1))
            labels.append(graph.modes[edge])
    if not travelled:
        raise ValueError("forcing needs pairs that go or yield; there are none")
    columns = (travelled, shift, chances, labels)
    return Forced(*(torch.stack(column) for column in columns))


def _lengths(paths: Tensor) -> Tensor:
    """Way travelled up to each step; (k, FUTURE, 2) -> (k, FUTURE)."""
    start = torch.zeros_like(paths[:, :1])
    return torch.cat([start, paths], 1).diff(dim=1).norm(dim=-1).cumsum(-1)
