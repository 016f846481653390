"""Coordinates of every vector of a program, drawn from their limiting law: the full rule, sampled.

It takes several arguments, nested nonlinearities, and W together with Wᵀ: the Ż terms of *Tensor
Programs III* (arXiv 2009.10685). Where a wide network would multiply by a matrix, Gaussians with
the samples' own covariance are drawn.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from bozzetto.tangent.program import (
    Bias,
    Coefficient,
    Input,
    Linear,
    Matrix,
    Moment,
    Nonlinear,
    Ones,
    Product,
    Vector,
    ordered,
)


class Noise:
    """White Gaussian columns of `samples` entries, each exactly orthogonal to those drawn before.

    Orthogonality makes the samples' covariances the intended ones. It is kept to the first half of
    the dimensions; columns drawn after that are only independent.
    """

    def __init__(self, samples: int, seed: int, dtype: torch.dtype) -> None:
        self.samples, self.dtype = samples, dtype
        self.generator = torch.Generator().manual_seed(seed)
        self.basis = torch.zeros(samples, 0, dtype=dtype)

    def draw(self, columns: int) -> Tensor:
        """(samples, columns) with second moment exactly the identity."""
        if columns > self.samples // 2:
            raise ValueError(
                f"{columns} vectors share a matrix: take at least {2 * columns} samples; "
                f"got {self.samples}"
            )
        fresh = torch.randn(self.samples, columns, generator=self.generator, dtype=self.dtype)
        fresh = fresh - self.basis @ (self.basis.T @ fresh)
        q, r = torch.linalg.qr(fresh)
        q = q * r.diagonal().sign()
        if self.basis.shape[1] + columns <= self.samples // 2:
            self.basis = torch.cat([self.basis, q], 1)
        return q * self.samples**0.5


class Family:
    """What a matrix W (or Wᵀ) was multiplied by so far, and the Gaussian parts Ẑ of the results."""

    def __init__(self) -> None:
        self.arguments: list[Tensor] = []  # each (S or d, R)
        self.values: list[Tensor] = []  # each (S, R)

    def multiply(self, columns: Tensor, scale: float, noise: Noise) -> Tensor:
        """Ẑ for new arguments (S, R), jointly Gaussian with what the family gave before."""
        gram = columns.T @ columns * (scale / noise.samples)
        value = noise.draw(columns.shape[1])
        if self.arguments:
            past, seen = torch.cat(self.arguments, 1), torch.cat(self.values, 1)
            cross = past.T @ columns * (scale / noise.samples)
            weights = _inverse(past.T @ past * (scale / noise.samples)) @ cross
            value = seen @ weights + value @ _root(gram - cross.T @ weights)
        else:
            value = value @ _root(gram)
        self.arguments.append(columns)
        self.values.append(value)
        return value


def _root(gram: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def _inverse(gram: Tensor) -> Tensor:
    return torch.linalg.pinv(gram, hermitian=True, rtol=1e-10)


class Samples:
    """Z of every vector of a program at inputs x (N, P, d): `values[v]` is (S, N, P_v)."""

    def __init__(self, output: Vector, x: Tensor, samples: int, seed: int) -> None:
        self.order, self.output, self.x, self.samples = ordered(output), output, x, samples
        self.noise = Noise(samples, seed, x.dtype)
        self.families: dict[tuple[Matrix, bool], Family] = defaultdict(Family)
        self.values: dict[Vector, Tensor] = {}
        for v in self.order:
            if not self._waits(v):
                self.values[v] = self._value(v)

    def _waits(self, v: Vector) -> bool:
        """Whether v has no samples: the data, and outputs whose readout has a mean."""
        match v:
            case Input():
                return True
            case Product():
                return bool(v.matrix.mean)
            case Linear():
                return any(t not in self.values for _, t in v.terms)
            case _:
                return False

    def _value(self, v: Vector) -> Tensor:
        match v:
            case Ones():
                return self.x.new_ones(self.samples, len(self.x), 1)
            case Bias():
                draw = self.noise.draw(1)[:, None] * v.scale**0.5
                return draw.expand(-1, len(self.x), 1)
            case Product():
                shape = (self.samples, len(self.x), v.positions)
                return self.multiply(v.matrix, v.transposed, self.columns(v.argument)).view(shape)
            case Nonlinear():
                return v.function(*(self.values[a] for a in v.arguments))
            case Linear():
                return sum(
                    (self.mixed(c, self.values[t]) for c, t in v.terms), self.x.new_zeros(())
                )
            case _:
                raise TypeError(f"no sampling rule for {type(v).__name__}")

    def columns(self, v: Vector) -> Tensor:
        """What a matrix multiplies: samples (S, N P), or data (d, N P) scaled to the same Gram."""
        if v in self.values:
            return self.values[v].flatten(1)
        return self.data(v).flatten(0, 1).T * (self.samples / int(v.width)) ** 0.5

    def data(self, v: Vector) -> Tensor:
        """A vector made of the inputs alone: (N, P, d)."""
        if isinstance(v, Input):
            return self.x
        if not isinstance(v, Linear):
            raise TypeError(f"{type(v).__name__} has the finite width of the data")
        parts = [(self.factor(c), self.data(t)) for c, t in v.terms]
        return sum(
            (f @ t if isinstance(f, Tensor) else f * t for f, t in parts), self.x.new_zeros(())
        )

    def factor(self, coefficient: Coefficient) -> float | Tensor:
        """A coefficient as a number, or as a matrix (rows, columns), one per input for moments."""
        if isinstance(coefficient, Moment):
            grams = [
                torch.einsum("snp,snq->npq", self.values[a], self.values[b]) / self.samples
                for a, b in coefficient.pairs
            ]
            return coefficient.function(*grams)
        return coefficient.to(self.x.dtype) if isinstance(coefficient, Tensor) else coefficient

    def mixed(self, coefficient: Coefficient, value: Tensor) -> Tensor:
        """Mix positions by a coefficient: (S, N, P) -> (S, N, rows)."""
        f = self.factor(coefficient)
        return (f @ value[..., None])[..., 0] if isinstance(f, Tensor) else f * value

    def gram(self, a: Vector, b: Vector) -> Tensor:
        """E Z^a Z^b over inputs and positions: (N, P_a, N, P_b)."""
        value = self.columns(a).T @ self.columns(b) / self.samples
        n = len(self.x)
        return value.view(n, a.positions, n, b.positions)

    def multiply(self, matrix: Matrix, transposed: bool, columns: Tensor) -> Tensor:
        """W x, or Wᵀ x, for arguments (S, R) or data (d, R): (S, R)."""
        other = self.families.get((matrix, not transposed))
        value = self.families[matrix, transposed].multiply(columns, matrix.scale, self.noise)
        if other is None or len(other.values[0]) != len(columns):
            return value
        return value + self._memory(other, columns)

    def _memory(self, other: Family, columns: Tensor) -> Tensor:
        """Ż: the part of W x along the y for which Wᵀ y was used, by Stein's lemma."""
        y, z = torch.cat(other.arguments, 1), torch.cat(other.values, 1)
        return y @ (_inverse(y.T @ y / self.samples) @ (z.T @ columns / self.samples))
