"""The network: encoders, message passing, modes of the edges, and paths that know the modes."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bozzetto.trajectory.graphs import EDGE, NODE, past_of
from bozzetto.trajectory.labels import MODES, UNKNOWN
from bozzetto.trajectory.scenes import FUTURE

__all__ = ["Kind", "Output", "Predictor", "Shape", "fresh"]

Kind = Literal["joint", "graph", "alone"]


@dataclass(frozen=True)
class Shape:
    """What a network is made of.

    Attributes:
        kind: "joint" predicts modes and lets paths depend on them; "graph" passes messages without
            modes; "alone" sees every agent by itself.
        width: of all hidden vectors.
        rounds: of message passing.
    """

    kind: Kind = "joint"
    width: int = 64
    rounds: int = 3

    def __post_init__(self) -> None:
        """Raises ValueError for a kind that does not exist or a size that no network has."""
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind needs to be one of {get_args(Kind)}; got {self.kind!r}")
        for name, value, most in (("width", self.width, 1 << 14), ("rounds", self.rounds, 64)):
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"{name} needs to be in 1 … {most}; got {value!r}")


class Output(NamedTuple):
    """What the network says.

    Attributes:
        paths: in the agents' frames, metres; (n, FUTURE, 2).
        logits: of the modes of every edge; (e, 3), zeros where the network knows no modes.
    """

    paths: Tensor
    logits: Tensor


def mlp(n: int, width: int, m: int) -> nn.Sequential:
    """Two layers."""
    return nn.Sequential(nn.Linear(n, width), nn.ReLU(), nn.Linear(width, m))


class Pairs(nn.Module):
    """A two-layer function of [h_target, h_source, e] for every edge.

    Its first layer is one for each of the three: those of the nodes are applied before they are
    copied to the edges, which are several times as many.
    """

    def __init__(self, width: int, m: int) -> None:
        super().__init__()
        self.of_target = nn.Linear(width, width)
        self.of_source = nn.Linear(width, width, bias=False)
        self.of_edge = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, m)

    def forward(self, h: Tensor, e: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """(n, width), (e, width) -> (e, m)."""
        ends = self.of_target(h).index_select(0, target) + self.of_source(h).index_select(0, source)
        return self.out(F.relu(ends + self.of_edge(e)))


class Predictor(nn.Module):
    """Paths of all agents and modes of all edges, of one scene or several joined."""

    def __init__(self, shape: Shape = Shape()) -> None:
        super().__init__()
        d, kinds = shape.width, len(MODES)
        rounds = 0 if shape.kind == "alone" else shape.rounds
        self.shape = shape
        self.node = mlp(NODE, 2 * d, d).append(nn.LayerNorm(d))
        self.edge = mlp(EDGE, d, d) if rounds else None
        self.edge_updates = nn.ModuleList(Pairs(d, d) for _ in range(rounds))
        self.node_updates = nn.ModuleList(mlp(3 * d, d, d) for _ in range(rounds))
        self.mode = Pairs(d, kinds) if shape.kind == "joint" else None
        self.typed = Pairs(d, kinds * d) if shape.kind == "joint" else None
        self.decoder = mlp((3 if self.typed else 1) * d, 2 * d, 2 * FUTURE)

    def forward(
        self,
        nodes: Tensor,
        edges: Tensor,
        source: Tensor,
        target: Tensor,
        given: Tensor | None = None,
    ) -> Output:
        """Paths and logits.

        Args:
            nodes: (n, NODE).
            edges: (e, EDGE).
            source: of the edges, (e,).
            target: of the edges, (e,).
            given: modes to take in place of the network's own, (e,); UNKNOWN leaves its own.
        """
        h = F.relu(self.node(nodes))
        logits = edges.new_zeros(edges.shape[0], len(MODES))
        read = h
        if self.edge is not None:
            e = F.relu(self.edge(edges))
            for update_edges, update_nodes in zip(
                self.edge_updates, self.node_updates, strict=True
            ):
                e = e + F.relu(update_edges(h, e, source, target))
                read = torch.cat([h, pooled(e, target, h)], -1)
                h = h + F.relu(update_nodes(read))
            read = h
            if self.mode is not None and self.typed is not None:
                logits = self.mode(h, e, source, target)
                weight = logits.softmax(-1) if given is None else replaced(logits, given)
                messages = F.relu(self.typed(h, e, source, target)).unflatten(-1, (len(MODES), -1))
                message = (weight[..., None] * messages).sum(-2)
                read = torch.cat([h, pooled(message, target, h)], -1)
        offsets = self.decoder(read).unflatten(-1, (FUTURE, 2)).cumsum(-2)
        return Output(straight(nodes) + offsets, logits)


def replaced(logits: Tensor, given: Tensor) -> Tensor:
    """Probabilities that are sure of the given modes, (e,), where those are known; (e, 3)."""
    sure = F.one_hot(given.clamp(min=0), len(MODES)).to(logits)
    return torch.where((given == UNKNOWN)[:, None], logits.softmax(-1), sure)


def straight(nodes: Tensor) -> Tensor:
    """The paths at constant velocity; (n, NODE) -> (n, FUTURE, 2)."""
    past = past_of(nodes)
    step = past[:, -1] - past[:, -2]
    return step[:, None] * torch.arange(1, FUTURE + 1, device=nodes.device)[:, None]


def pooled(values: Tensor, target: Tensor, h: Tensor) -> Tensor:
    """Mean and largest of the values of the edges that end at each node; (n, 2 d)."""
    d = values.shape[1]
    place = target[:, None].expand(-1, d)
    zero = h.new_zeros(h.shape[0], d)
    total = zero.scatter_add(0, place, values)
    count = h.new_zeros(h.shape[0]).scatter_add(0, target, torch.ones_like(values[:, 0]))
    top = zero.scatter_reduce(0, place, values, "amax")  # values are >= 0
    return torch.cat([total / count.clamp(min=1)[:, None], top], -1)


def fresh(shape: Shape = Shape(), *, seed: int = 0) -> Predictor:
    """A network with weights drawn from a seed; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Predictor(shape)
