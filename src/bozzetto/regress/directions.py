"""Importance directions: the tangent space at a Tucker tensor, its coordinates and retraction."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bozzetto.tensors import Tucker, fold, hooi, leading, mode_product, unfold

__all__ = ["Coordinates", "Directions"]


@dataclass(frozen=True)
class Coordinates:
    """A tangent point: a core (r₁, …, r_d) and for every mode an arm (p_k − r_k, r_k)."""

    core: Tensor
    arms: tuple[Tensor, ...]

    def squared_norm(self) -> float:
        """‖A‖² of the tensor: the coordinates are orthonormal."""
        return float(sum((part**2).sum() for part in (self.core, *self.arms)))


@dataclass(frozen=True)
class Directions:
    """Bases of the tangent space at a Tucker tensor (Zhang, Luo, Raskutti, Yuan 2020, §2).

    Attributes:
        spans: U_k, orthonormal (p_k, r_k).
        complements: U_k⊥, orthonormal (p_k, p_k − r_k).
        rows: V_k, orthonormal row bases of the core's unfoldings, (r_{-k}, r_k).
    """

    spans: tuple[Tensor, ...]
    complements: tuple[Tensor, ...]
    rows: tuple[Tensor, ...]

    @property
    def ranks(self) -> tuple[int, ...]:
        """(r₁, …, r_d)."""
        return tuple(u.shape[1] for u in self.spans)

    @classmethod
    def at(cls, tucker: Tucker) -> tuple["Directions", Tensor]:
        """The directions at a tensor, and its core there (its arms are zero)."""
        full = [torch.linalg.qr(factor, mode="complete") for factor in tucker.factors]
        ranks = tucker.ranks
        spans = tuple(q[:, :r] for (q, _), r in zip(full, ranks, strict=True))
        complements = tuple(q[:, r:] for (q, _), r in zip(full, ranks, strict=True))
        core = tucker.core
        for k, ((_, upper), r) in enumerate(zip(full, ranks, strict=True)):
            core = mode_product(core, upper[:r], k)
        rows = tuple(leading(unfold(core, k).T, r) for k, r in enumerate(ranks))
        return cls(spans, complements, rows), core

    def tensor(self, point: Coordinates) -> Tucker:
        """The tangent space's tensor in Tucker form, of ranks up to twice the directions' ranks."""
        turns = [torch.linalg.qr(arm) for arm in point.arms]  # (p_k − r_k, s_k), (s_k, r_k)
        pairs = zip(self.spans, self.complements, turns, strict=True)
        factors = tuple(torch.cat([u, c @ q], dim=1) for u, c, (q, _) in pairs)
        core = point.core.new_zeros([factor.shape[1] for factor in factors])
        core[tuple(slice(r) for r in self.ranks)] = point.core
        for k, (_, upper) in enumerate(turns):
            place = [slice(r) for r in self.ranks]
            place[k] = slice(self.ranks[k], None)
            shape = [len(upper) if j == k else r for j, r in enumerate(self.ranks)]
            core[tuple(place)] = fold(upper @ self.rows[k].T, k, shape)
        return Tucker(core, factors)

    def retract(self, point: Coordinates) -> Tucker:
        """The nearest tensor of the directions' ranks, by HOOI of the tangent tensor's core."""
        tangent = self.tensor(point)
        small = hooi(tangent.core, self.ranks)
        return Tucker(small.core, small.factors).along(tangent.factors)
