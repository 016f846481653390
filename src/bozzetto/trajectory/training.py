"""Training of the network: its loss, its batches, its recipe."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

import bozzetto as bz
from bozzetto.trajectory.graphs import Graph, joined
from bozzetto.trajectory.labels import MODES, UNKNOWN
from bozzetto.trajectory.network import Output, Predictor

__all__ = ["EDGES", "RECIPE", "SIZE", "TOLD", "Loss", "batches", "class_weights", "fit"]

_ROUND = 1e-2  # metres: distances are rounded off near zero, where their slope jumps


@dataclass(frozen=True)
class Loss:
    """Mean distance of the known steps, and the cross entropy of the known modes.

    Attributes:
        weights: of the modes; ones by default.
        share: of the cross entropy; 0 for networks without modes.
    """

    weights: tuple[float, ...] = (1.0,) * len(MODES)
    share: float = 0.5

    def __call__(self, output: Output, target: dict[str, Tensor]) -> Tensor:
        """A scalar, in metres."""
        square = (output.paths - target["future"]).square().sum(-1)  # (n, FUTURE)
        far = (square + _ROUND**2).sqrt()[target["known"]].sum() / target["known"].sum().clamp(1)
        if self.share == 0:
            return far
        weights = torch.tensor(self.weights, device=far.device)
        labels = target["modes"]
        each = F.cross_entropy(
            output.logits, labels, weights, ignore_index=UNKNOWN, reduction="sum"
        )
        total = weights[labels.clamp(min=0)][labels != UNKNOWN].sum()
        return far + self.share * each / total.clamp(min=1e-6)


def class_weights(graphs: Iterable[Graph]) -> tuple[float, ...]:
    """Inverse square roots of how often a mode occurs, with mean 1."""
    labels = torch.cat([g.modes[g.modes != UNKNOWN] for g in graphs])
    counts = labels.bincount(minlength=len(MODES)).clamp(min=1)
    weights = counts.double().rsqrt()
    return tuple((weights / weights.mean()).tolist())


SIZE = 8  # scenes in a batch
TOLD = 0.3  # chance of a known mode to be an input, so that paths follow the modes they are given
EDGES = 0.5  # chance of an edge to be there, but for the end of the training
_END = 0.25  # share of the training with all edges


@dataclass
class _Collate:
    """Joins scenes; may leave out edges, and may tell modes."""

    generator: torch.Generator
    edges: float
    told: float

    def __call__(self, some: Sequence[Graph]) -> Any:
        whole = joined(some)
        if self.edges < 1:
            whole = _thinned(whole, self._draw(len(whole.edges)) < self.edges)
        inputs, target = whole.batch()
        if not self.told:
            return inputs, target
        kept = self._draw(len(whole.modes)) < self.told
        return (*inputs, whole.modes.where(kept, torch.tensor(UNKNOWN))), target

    def _draw(self, n: int) -> Tensor:
        return torch.rand(n, generator=self.generator)


def batches(
    graphs: Sequence[Graph],
    *,
    size: int = SIZE,
    shuffle: bool = True,
    seed: int = 0,
    edges: float = 1.0,
    told: float = 0.0,
) -> DataLoader[Any]:
    """Batches of joined scenes for `bozzetto.train`.

    Args:
        graphs: of the scenes.
        size: scenes in a batch.
        shuffle: draw the scenes in another order every epoch.
        seed: of the order, and of what is drawn.
        edges: chance of every edge to be there.
        told: chance of every known mode to be an input too, in place of the network's own.
    """
    collate = _Collate(torch.Generator().manual_seed(seed), edges, told)
    return _loader(graphs, size, shuffle, collate)


def _loader(
    graphs: Sequence[Graph], size: int, shuffle: bool, collate: _Collate
) -> DataLoader[Any]:
    return DataLoader(
        list(graphs),  # pyright: ignore[reportArgumentType]
        batch_size=size,
        shuffle=shuffle,
        generator=collate.generator,
        collate_fn=collate,
    )


def _thinned(graph: Graph, kept: Tensor) -> Graph:
    """The graph with the chosen edges only."""
    names = ("edges", "source", "target", "modes")
    return replace(graph, **{name: getattr(graph, name)[kept] for name in names})


RECIPE = bz.Recipe(
    epochs=10, optimizer="adamw", lr=2e-3, schedule="onecycle", warmup=0.2, clip=5.0, ema=0.99
)


def fit(
    predictor: Predictor,
    graphs: Sequence[Graph],
    recipe: bz.Recipe = RECIPE,
    *,
    size: int = SIZE,
    told: float = TOLD,
    callbacks: Iterable[Callable[[Any], None]] = (),
) -> Any:
    """Train a network in place, on half of the edges, which costs less, and at the end on all.

    Args:
        predictor: fresh or trained.
        graphs: of the scenes to learn.
        recipe: its loss is replaced by `Loss`, weighted by how often each mode occurs.
        size: scenes in a batch.
        told: as of `batches`, for joint networks: the more, the more paths follow given modes.
        callbacks: as of `bozzetto.train`.

    Returns:
        `bozzetto.train`'s history.

    Raises:
        ValueError: if there are no scenes.
    """
    if not graphs:
        raise ValueError("training needs scenes; got none")
    joint = predictor.shape.kind == "joint"
    loss = Loss(class_weights(graphs), 0.5 if joint else 0.0)
    generator = torch.Generator().manual_seed(recipe.seed)
    collate = _Collate(generator, EDGES, told if joint else 0.0)

    def all_edges_at_the_end(progress: Any) -> None:
        if progress.step >= (1 - _END) * progress.steps:
            collate.edges = 1.0

    loader = _loader(graphs, size, True, collate)
    callbacks = (*callbacks, all_edges_at_the_end)
    return bz.train(predictor, loader, replace(recipe, loss=loss), callbacks=callbacks)
