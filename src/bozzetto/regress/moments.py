"""First pass: means, the covariance tensor of response and covariates, second moments of modes."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bozzetto.linalg import derive_seed, random_permutation
from bozzetto.regress.designs import Dense, Design

__all__ = ["Block", "Moments", "measure"]

FIBRES = 32  # columns of an unfolding from which the second moment of its mode is taken
HELD = 1 << 21  # entries of fibres held at once


@dataclass(frozen=True)
class Block:
    """Some observations: b covariates, responses y (b, q₁, …) float64, weights (b,) float64 ≥ 0."""

    x: Design
    y: Tensor
    weight: Tensor


@dataclass
class Moments:
    """Centred sums over observations; those of two sets combine exactly (`merge`).

    Attributes:
        count: observations of positive weight.
        weight: Σ w.
        mean_x: (p₁, …, p_d).
        mean_y: (q₁, …).
        cross: Σ w (X − X̄) ∘ (y − ȳ), (p₁, …, p_d, q₁, …).
        modes: for every mode, Σ w of the second moments of some centred fibres, (p_k, p_k).
        square: Σ w ‖y − ȳ‖².
    """

    count: int
    weight: float
    mean_x: Tensor
    mean_y: Tensor
    cross: Tensor
    modes: list[Tensor]
    square: float

    def merge(self, other: "Moments") -> "Moments":
        """The sums of both sets, written into this one (Chan, Golub, LeVeque 1983).

        Raises:
            ValueError: if the two sets have covariates or responses of different shapes.
        """
        if self.cross.shape != other.cross.shape:
            raise ValueError(
                "all shards must have covariates and responses of one shape; "
                f"got {tuple(self.cross.shape)} and {tuple(other.cross.shape)}"
            )
        total = self.weight + other.weight
        share = other.weight / total
        step_y = other.mean_y - self.mean_y
        step_x = other.mean_x.sub_(self.mean_x)
        for k, moment in enumerate(self.modes):
            gap = _wanted_fibres(step_x, k)
            moment += other.modes[k] + (self.weight * share) * (gap @ gap.T)
        self.square += other.square + self.weight * share * float((step_y**2).sum())
        self.cross += other.cross
        _add_outer(self.cross, step_x, step_y * (self.weight * share))
        self.mean_x.add_(step_x, alpha=share)
        self.mean_y = self.mean_y + share * step_y
        self.count, self.weight = self.count + other.count, total
        return self

    def variance(self) -> float:
        """Mean variance of the covariates' entries, from the looked-at fibres of the first mode."""
        columns = len(wanted_columns(tuple(self.mean_x.shape), 0))
        entries = self.weight * len(self.modes[0]) * columns
        return max(float(self.modes[0].trace()) / entries, 1e-300)

    def about_zero(self) -> "Moments":
        """The same sums with nothing subtracted from covariates and responses, in place."""
        for k, moment in enumerate(self.modes):
            mean = _wanted_fibres(self.mean_x, k)
            moment += self.weight * mean @ mean.T
        _add_outer(self.cross, self.mean_x, self.mean_y * self.weight)
        self.square += self.weight * float((self.mean_y**2).sum())
        self.mean_x, self.mean_y = torch.zeros_like(self.mean_x), torch.zeros_like(self.mean_y)
        return self


def _add_outer(into: Tensor, x: Tensor, y: Tensor) -> None:
    """Into += x ∘ y without a temporary of the result's size."""
    flat = into.view(x.numel(), y.numel())
    for column, scale in enumerate(y.flatten().tolist()):
        flat[:, column].add_(x.flatten(), alpha=scale)


def wanted_columns(shape: tuple[int, ...], mode: int) -> Tensor:
    """Which columns of the mode-k unfolding are looked at: all, or at most 32 random ones.

    The same for every block, so that sums over shards stay exact; (·,) int64.
    """
    others = math.prod(shape) // shape[mode]
    if others <= FIBRES:
        return torch.arange(others)
    return random_permutation(derive_seed(0, "fibres", mode, *shape), others)[:FIBRES]


def _wanted_fibres(x: Tensor, mode: int) -> Tensor:
    """The looked-at columns of one tensor's mode-k unfolding: (p_k, ·)."""
    columns = wanted_columns(tuple(x.shape), mode)
    return Dense(x[None]).fibres(mode, columns)[0]


def measure(block: Block) -> Moments:
    """The moments of one block."""
    x, y, w = block.x, block.y, block.weight
    total = w.sum()
    mean_y = w @ y.reshape(len(y), -1) / total
    centred = y.reshape(len(y), -1) - mean_y  # (b, q)
    sums = x.weighted_sums(torch.cat([w[None] / total, (centred * w[:, None]).T]))
    cross = sums[1:].movedim(0, -1).contiguous().reshape(*x.shape, *y.shape[1:])
    # A view of several responses' sums would keep them all.
    mean_x = sums[0] if y.ndim == 1 else sums[0].clone()
    seconds = [_mode_moment(x, k, mean_x, w) for k in range(len(x.shape))]
    square = float((w[:, None] * centred**2).sum())
    mean_y = mean_y.reshape(y.shape[1:])
    return Moments(int((w > 0).sum()), float(total), mean_x, mean_y, cross, seconds, square)


def _mode_moment(x: Design, mode: int, mean: Tensor, w: Tensor) -> Tensor:
    """Σ_j w_j of the second moment of the looked-at, centred fibres: (p_k, p_k)."""
    columns, p = wanted_columns(x.shape, mode), x.shape[mode]
    middle, root = _wanted_fibres(mean, mode), w.sqrt()[:, None, None]
    total = torch.zeros(p, p, dtype=torch.float64)
    rows = max(1, HELD // (p * len(columns)))
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        fibres = (x[part].fibres(mode, columns) - middle) * root[part]
        flat = fibres.movedim(1, 0).flatten(1)
        total.addmm_(flat, flat.T)
    return total
