"""Gradients of one parameter at a block of inputs, as the factors that layers give them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Flat", "Lookup", "Outer", "Part", "inner"]


@dataclass(frozen=True)
class Outer:
    """Gradients Σ_p d_p ⊗ a_p of a weight in g groups: d (N, O, g, P, m), a (N, g, P, k)."""

    d: Tensor
    a: Tensor

    def joined(self, other: Outer) -> Outer:
        """The same weight used again."""
        return Outer(torch.cat([self.d, other.d], 3), torch.cat([self.a, other.a], 2))

    def flat(self) -> Tensor:
        """The gradients themselves: (N, O, g m k)."""
        return torch.einsum("nogpm,ngpk->nogmk", self.d, self.a).flatten(2)

    def settled(self, outputs: Literal["each", "mean"]) -> Outer | Flat:
        """The gradients formed, where inner products of them take fewer multiplications."""
        _, o, _, p, m = self.d.shape
        pairs, k = o * o if outputs == "each" else o, self.a.shape[3]
        by_grams, by_gradients = p * p * (pairs * m + k), m * k * pairs
        return Flat(self.flat()) if by_gradients < by_grams else self

    def kernel(self, other: Outer, outputs: Literal["each", "mean"]) -> Tensor:
        """Inner products from those of d and those of a: (N, N', O, O) or (N, N')."""
        n, o, g, p, _ = self.d.shape
        n2, p2 = len(other.d), other.d.shape[3]
        step = max(1, 2**24 // (g * p * p2 * n2 * (o * o if outputs == "each" else o)))
        rule = "nmgpq,nogpi,mugqi->nmou" if outputs == "each" else "nmgpq,nogpi,mogqi->nm"
        rows = [self._grams(other, slice(i, i + step), rule) for i in range(0, n, step)]
        return torch.cat(rows)

    def _grams(self, other: Outer, rows: slice, rule: str) -> Tensor:
        a = torch.einsum("ngpk,mgqk->nmgpq", self.a[rows], other.a)
        left, right = rule.split("->")[0].split(",")[1:]
        over = "nmou" if "u" in rule else "nmo"
        d = torch.einsum(f"{left},{right}->{over}gpq", self.d[rows], other.d)
        return torch.einsum(f"nmgpq,{over}gpq->{rule.split('->')[1]}", a, d)


@dataclass(frozen=True)
class Lookup:
    """Gradients of a table: rows d (N, O, P, m) added at places index (N, P)."""

    d: Tensor
    index: Tensor
    padding: int | None

    def joined(self, other: Lookup) -> Lookup:
        """The same table used again."""
        return Lookup(
            torch.cat([self.d, other.d], 2), torch.cat([self.index, other.index], 1), self.padding
        )

    def kernel(self, other: Lookup, outputs: Literal["each", "mean"]) -> Tensor:
        """Inner products: positions meet where they look up the same row."""
        same = self.index[:, None, :, None] == other.index[None, :, None, :]
        if self.padding is not None:
            same &= (self.index != self.padding)[:, None, :, None]
        one, two = ("nopi", "muqi") if outputs == "each" else ("nopi", "moqi")
        end = "nmou" if outputs == "each" else "nm"
        return torch.einsum(f"nmpq,{one},{two}->{end}", same.to(self.d.dtype), self.d, other.d)


@dataclass(frozen=True)
class Flat:
    """Gradients as they are: (N, O, size)."""

    value: Tensor

    def joined(self, other: Flat) -> Flat:
        """The same parameter used again."""
        return Flat(self.value + other.value)

    def kernel(self, other: Flat, outputs: Literal["each", "mean"]) -> Tensor:
        """Their inner products."""
        return inner(self.value, other.value, outputs)


Part = Outer | Lookup | Flat


def inner(a: Tensor, b: Tensor, outputs: Literal["each", "mean"]) -> Tensor:
    """(N, O, s) and (N', O, s) -> (N, N', O, O), or summed over equal outputs (N, N')."""
    if outputs == "mean":
        return a.flatten(1) @ b.flatten(1).T
    value = a.flatten(0, 1) @ b.flatten(0, 1).T
    return value.view(len(a), a.shape[1], len(b), b.shape[1]).transpose(1, 2)
