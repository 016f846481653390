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

__all__ = ["RECIPE", "Loss", "batches", "class_weights", "fit"]

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


def batches(
    graphs: Sequence[Graph],
    *,
    size: int = 8,
    shuffle: bool = True,
    seed: int = 0,
    told: float = 0.0,
) -> DataLoader[Any]:
    """Batches of joined scenes for `bozzetto.train`.

    Args:
        graphs: of the scenes.
        size: scenes in a batch.
        shuffle: draw the scenes in another order every epoch.
        seed: of the order, and of the modes that are told.
        told: chance of every known mode to be an input too, in place of the network's own.
    """
    generator = torch.Generator().manual_seed(seed)

    def collate(some: Sequence[Graph]) -> Any:
        whole = joined(some)
        inputs, target = whole.batch()
        if not told:
            return inputs, target
        kept = torch.rand(len(whole.modes), generator=generator) < told
        return (*inputs, whole.modes.where(kept, torch.tensor(UNKNOWN))), target

    return DataLoader(
        list(graphs),  # pyright: ignore[reportArgumentType]
        batch_size=size,
        shuffle=shuffle,
        generator=generator,
        collate_fn=collate,
    )


RECIPE = bz.Recipe(
    epochs=10, optimizer="adamw", lr=2e-3, schedule="onecycle", warmup=0.2, clip=5.0, ema=0.99
)


def fit(
    predictor: Predictor,
    graphs: Sequence[Graph],
    recipe: bz.Recipe = RECIPE,
    *,
    size: int = 8,
    callbacks: Iterable[Callable[[Any], None]] = (),
) -> Any:
    """Train a network in place; returns `bozzetto.train`'s history.

    Args:
        predictor: fresh or trained.
        graphs: of the scenes to learn.
        recipe: its loss is replaced by `Loss`, weighted by how often each mode occurs.
        size: scenes in a batch.
        callbacks: as of `bozzetto.train`.

    Raises:
        ValueError: if there are no scenes.
    """
    if not graphs:
        raise ValueError("training needs scenes; got none")
    share = 0.5 if predictor.shape.kind == "joint" else 0.0
    loss = Loss(class_weights(graphs), share)
    loader = batches(graphs, size=size, seed=recipe.seed)

    return bz.train(predictor, loader, replace(recipe, loss=loss), callbacks=callbacks)
