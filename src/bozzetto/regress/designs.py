"""Designs: blocks of tensor covariates, in full or as rank-one factors, and what they are asked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bozzetto.tensors import Tucker, mode_product, multi_product

__all__ = ["Dense", "Design", "RankOne", "inner"]

PRODUCTS = 1 << 26  # most entries of rank-one covariates' products that are held at once


class Design(Protocol):
    """A block of b covariates X_j of shape (p₁, …, p_d), seen only through three linear maps.

    Whatever answers these can be regressed on: nothing else of the covariates is used.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(p₁, …, p_d)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | Tensor) -> "Design": ...

    def weighted_sums(self, weights: Tensor) -> Tensor:
        """Σ_j weights[a, j] X_j: (a, b) -> (a, p₁, …, p_d), float64."""
        ...

    def fibres(self, mode: int, columns: Tensor) -> Tensor:
        """Columns of the mode-k unfoldings: (b, p_k, len(columns)), float64."""
        ...

    def partials(self, bases: Sequence[Tensor]) -> list[Tensor]:
        """For every k, M_k(X_j ×_{i≠k} bases[i]ᵀ): (b, p_k, r_{-k}) each, float64."""
        ...

    def cores(self, bases: Sequence[Tensor]) -> Tensor:
        """X_j ×_k bases[k]ᵀ flattened: (b, Π r), float64."""
        ...

    def restrict(self, rows: Sequence[Tensor]) -> "Design":
        """The covariates at some indices of every mode."""
        ...


@dataclass(frozen=True)
class Dense:
    """Covariates held entry by entry: values (b, p₁, …, p_d), float32 or float64."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(p₁, …, p_d)."""
        return tuple(self.values.shape[1:])

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice | Tensor) -> "Dense":
        return Dense(self.values[rows])

    def weighted_sums(self, weights: Tensor) -> Tensor:
        """One matrix product in the covariates' own precision."""
        sums = weights.to(self.values.dtype) @ self.values.flatten(1)
        return sums.double().unflatten(1, self.shape)

    def fibres(self, mode: int, columns: Tensor) -> Tensor:
        """Gathered by flat position."""
        strides = [math.prod(self.shape[k + 1 :]) for k in range(len(self.shape))]
        wanted = torch.arange(self.shape[mode])[:, None] * strides[mode]  # (p_k, ·) positions
        others = [k for k in range(len(self.shape)) if k != mode]
        places = torch.unravel_index(columns, [self.shape[k] for k in others]) if others else ()
        for k, place in zip(others, places, strict=True):
            wanted = wanted + place * strides[k]
        return self.values.flatten(1)[:, wanted].double()

    def partials(self, bases: Sequence[Tensor]) -> list[Tensor]:
        """Halves of the modes are contracted once and shared: two readings of X for any d."""
        bases = [basis.to(self.values.dtype) for basis in bases]
        partials = _contract_all_but_one(self.values, bases, list(range(len(bases))))
        unfolded = [x.movedim(k + 1, 1) for k, x in enumerate(partials)]
        return [x.reshape(*x.shape[:2], -1).double() for x in unfolded]

    def cores(self, bases: Sequence[Tensor]) -> Tensor:
        """The last modes first, where the product is one large matrix product."""
        x = self.values
        for k in reversed(range(len(bases))):
            x = mode_product(x, bases[k].T.to(x.dtype), k + 1)
        return x.flatten(1).double()

    def restrict(self, rows: Sequence[Tensor]) -> "Dense":
        """A copy of the wanted entries."""
        x = self.values
        for k, index in enumerate(rows):
            x = x.index_select(k + 1, index)
        return Dense(x)


def _contract_all_but_one(x: Tensor, bases: list[Tensor], modes: list[int]) -> list[Tensor]:
    """For every k in modes, x contracted with the bases of the other ones of them."""
    if len(modes) == 1:
        return [x]
    half = len(modes) // 2
    left, right = modes[:half], modes[half:]
    for_left, for_right = x, x
    for k in reversed(right):
        for_left = mode_product(for_left, bases[k].T, k + 1)
    for k in left:
        for_right = mode_product(for_right, bases[k].T, k + 1)
    return [
        *_contract_all_but_one(for_left, bases, left),
        *_contract_all_but_one(for_right, bases, right),
    ]


@dataclass(frozen=True)
class RankOne:
    """Covariates X_j = a_j¹ ∘ … ∘ a_jᵈ held as factors (b, p_k): never formed.

    Raises:
        ValueError: if the factors are not floating matrices with one number of rows.
    """

    factors: tuple[Tensor, ...]

    @classmethod
    def of(cls, *factors: np.ndarray) -> "RankOne":
        """From arrays (b, p₁), …, (b, p_d); integers become float64."""
        arrays = [np.array(factor) for factor in factors]
        floats = [a if a.dtype in (np.float32, np.float64) else a.astype(float) for a in arrays]
        return cls(tuple(map(torch.from_numpy, floats)))

    def __post_init__(self) -> None:
        shapes = [tuple(factor.shape) for factor in self.factors]
        if not shapes or any(len(s) != 2 or s[0] != shapes[0][0] for s in shapes):
            raise ValueError(f"rank-one factors must be (b, p_k) with one b; got {shapes}")
        if not all(factor.is_floating_point() for factor in self.factors):
            raise ValueError(f"factors must be floats; got {[f.dtype for f in self.factors]}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(p₁, …, p_d)."""
        return tuple(factor.shape[1] for factor in self.factors)

    def __len__(self) -> int:
        return len(self.factors[0])

    def __getitem__(self, rows: slice | Tensor) -> "RankOne":
        return RankOne(tuple(factor[rows] for factor in self.factors))

    def weighted_sums(self, weights: Tensor) -> Tensor:
        """Matrix products (p₁, b) × (b, p₂ ⋯ p_d) of some rows in the factors' own precision."""
        rest = math.prod(self.shape[1:])
        sums = torch.zeros(len(weights), self.shape[0], rest, dtype=torch.float64)
        rows = max(1, PRODUCTS // rest)
        for start in range(0, len(self), rows):
            first, *others = [factor[start : start + rows] for factor in self.factors]
            products = _khatri_rao(others, first.new_ones(len(first), 1))
            for total, w in zip(sums, weights[:, start : start + rows].to(first), strict=True):
                total += (first * w[:, None]).T @ products
        return sums.reshape(len(weights), *self.shape)

    def fibres(self, mode: int, columns: Tensor) -> Tensor:
        """Products of the factors' entries at the wanted columns."""
        others = [f.double() for k, f in enumerate(self.factors) if k != mode]
        index = torch.unravel_index(columns, [f.shape[1] for f in others]) if others else ()
        scale = torch.ones(len(self), len(columns), dtype=torch.float64)
        for factor, places in zip(others, index, strict=True):
            scale = scale * factor[:, places]
        return self.factors[mode].double()[:, :, None] * scale[:, None]

    def partials(self, bases: Sequence[Tensor]) -> list[Tensor]:
        """Outer products of one whole factor with the others' few coordinates."""
        small = [f.double() @ u.double() for f, u in zip(self.factors, bases, strict=True)]
        one = torch.ones(len(self), 1, dtype=torch.float64)
        rest = [_khatri_rao(small[:k] + small[k + 1 :], one) for k in range(len(small))]
        pairs = zip(self.factors, rest, strict=True)
        return [factor.double()[:, :, None] * others[:, None] for factor, others in pairs]

    def cores(self, bases: Sequence[Tensor]) -> Tensor:
        """Products of the factors' few coordinates."""
        small = [f.double() @ u.double() for f, u in zip(self.factors, bases, strict=True)]
        return _khatri_rao(small, torch.ones(len(self), 1, dtype=torch.float64))

    def restrict(self, rows: Sequence[Tensor]) -> "RankOne":
        """The wanted columns of the factors."""
        return RankOne(tuple(f[:, index] for f, index in zip(self.factors, rows, strict=True)))


def inner(x: Design, tucker: Tucker) -> Tensor:
    """⟨X_j, A⟩ over the covariates' modes: (b, q₁, …), where A has shape (p₁, …, p_d, q₁, …)."""
    order = len(x.shape)
    cores = x.cores(tucker.factors[:order])
    few = cores @ tucker.core.reshape(cores.shape[1], -1)
    few = few.reshape(len(few), *tucker.core.shape[order:])
    return multi_product(few, tucker.factors[order:], first=1)


def _khatri_rao(factors: Sequence[Tensor], product: Tensor) -> Tensor:
    """Row-wise Kronecker products: (b, p_k) each -> (b, Π p_k), from `product`, ones (b, 1)."""
    for factor in factors:
        product = (product[:, :, None] * factor[:, None]).flatten(1)
    return product
