"""Baselines without weights: constant velocity, constant turn rate."""

import torch
from torch import Tensor

from bozzetto.trajectory.graphs import Graph, past_of
from bozzetto.trajectory.labels import MODES
from bozzetto.trajectory.network import Output
from bozzetto.trajectory.scenes import FUTURE, RATE

__all__ = ["BASELINES", "constant_turn", "constant_velocity"]

_FASTEST_TURN = 0.6  # rad/s
_BACK = 4  # steps between the two displacements that tell a turn, each of two steps
_MOVED = 1.0  # metres, below which a displacement tells no heading


def constant_velocity(graph: Graph) -> Output:
    """Every agent goes on by its last displacement."""
    past = past_of(graph.nodes)
    step = past[:, -1] - past[:, -2]
    return _without_modes(graph, step[:, None] * torch.arange(1, FUTURE + 1)[:, None])


def constant_turn(graph: Graph) -> Output:
    """Every agent keeps its speed and the turn rate of its last second."""
    past = past_of(graph.nodes)
    late, early = past[:, -1] - past[:, -3], past[:, -1 - _BACK] - past[:, -3 - _BACK]
    long = torch.minimum(late.norm(dim=-1), early.norm(dim=-1)) > _MOVED
    turned = (late[:, 1].atan2(late[:, 0]) - early[:, 1].atan2(early[:, 0])) * (RATE / _BACK)
    rate = torch.where(long, turned, 0.0).clamp(-_FASTEST_TURN, _FASTEST_TURN) / RATE
    step = past[:, -1] - past[:, -2]
    # The last displacement is the motion half a step ago: the next one has turned by a whole.
    angle = step[:, 1].atan2(step[:, 0])[:, None] + rate[:, None] * torch.arange(1, FUTURE + 1)
    steps = torch.stack([angle.cos(), angle.sin()], -1) * step.norm(dim=-1)[:, None, None]
    return _without_modes(graph, steps.cumsum(1))


def _without_modes(graph: Graph, paths: Tensor) -> Output:
    return Output(paths, graph.edges.new_zeros(len(graph.edges), len(MODES)))


BASELINES = {"constant velocity": constant_velocity, "constant turn rate": constant_turn}
