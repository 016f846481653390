"""Forward rules: the covariance of any two vectors of a program, exactly, in the limit.

Every vector is a combination of leaves: Gaussians (products with a matrix, biases), constants and
nonlinearities of Gaussians. Covariances of leaves follow the rules of *Tensor Programs II*
(arXiv 2006.14548, Theorem 7.2), with the Ż terms of *III* (arXiv 2009.10685) for products with Wᵀ.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from bozzetto.tangent.activation import Activation
from bozzetto.tangent.joint import JointActivation
from bozzetto.tangent.program import (
    Bias,
    Coefficient,
    Input,
    Linear,
    Moment,
    Nonlinear,
    Ones,
    Product,
    Vector,
    ordered,
)
from bozzetto.tangent.quadrature import polar_pair

Factor: TypeAlias = float | Tensor  # a multiple of the identity, or (..., rows, columns)
Expansion: TypeAlias = dict[Vector, Factor]


def compose(outer: Factor, inner: Factor) -> Factor:
    """The product of two factors."""
    if isinstance(outer, Tensor) and isinstance(inner, Tensor):
        return outer @ inner
    return outer * inner


def combine(first: Factor, second: Factor) -> Factor:
    """The sum of two factors, a number standing for a multiple of the identity."""
    if isinstance(first, Tensor) and not isinstance(second, Tensor):
        return first + second * torch.eye(first.shape[-1], dtype=first.dtype)
    if isinstance(second, Tensor) and not isinstance(first, Tensor):
        return combine(second, first)
    return first + second


def transpose(factor: Factor) -> Factor:
    """The adjoint."""
    return factor.mT if isinstance(factor, Tensor) else factor


class Joint:
    """Covariances between the vectors of a program at inputs x and at inputs y.

    x (N, 1, P, d) and y (1, N', P, d) meet in every pair; leading axes of results broadcast to
    (N, N'). `left` and `right` are the same for each input with itself; a joint without them is
    such a one, with x = y.
    """

    def __init__(
        self, output: Vector, x: Tensor, y: Tensor, sides: tuple[Joint, Joint] | None = None
    ) -> None:
        self.x, self.y = x, y
        self.left, self.right = sides or (self, self)
        self.order = ordered(output)
        self._expansions: dict[Vector, Expansion] = {}
        self._leaves: dict[tuple[Vector, Vector], Tensor | None] = {}
        self._covariances: dict[tuple[Vector, Vector], Tensor] = {}

    def visit(self) -> None:
        """Go through the program once in order, so that no later recursion is deep."""
        for vector in self.order:
            if isinstance(vector, Product | Nonlinear):
                self.covariance(vector, vector)

    def covariance(self, a: Vector, b: Vector) -> Tensor:
        """E Z^a Z^b at x and y: (..., P_a, P_b)."""
        if (a, b) not in self._covariances:
            batch = torch.broadcast_shapes(self.x.shape[:-2], self.y.shape[:-2])
            total = self.x.new_zeros(*batch, a.positions, b.positions)
            for leaf, first in self.left.expand(a).items():
                for other, second in self.right.expand(b).items():
                    value = self.leaf(leaf, other)
                    if value is not None:
                        total = total + compose(compose(first, value), transpose(second))
            self._covariances[a, b] = total
        return self._covariances[a, b]

    def variance(self, a: Vector) -> Tensor:
        """E (Z^a)² at x (of a joint of inputs with themselves): (..., P_a)."""
        return self.covariance(a, a).diagonal(dim1=-2, dim2=-1)

    def leaf(self, a: Vector, b: Vector) -> Tensor | None:
        """The covariance of two leaves, None where they are independent."""
        if (a, b) not in self._leaves:
            self._leaves[a, b] = self._leaf(a, b)
        return self._leaves[a, b]

    def _leaf(self, a: Vector, b: Vector) -> Tensor | None:
        match a, b:
            case Input(), Input():
                return self.x @ self.y.mT / self.x.shape[-1]
            case Product(), Product() if _same_matrix(a, b):
                return a.matrix.scale * self.covariance(a.argument, b.argument)
            case Bias(), Bias() if a is b:
                return self.x.new_full((1, 1), a.scale)
            case Ones(), Ones():
                return self.x.new_ones(1, 1)
            case Nonlinear(), Nonlinear():
                return self._nonlinear(a, b)
            case Nonlinear(), Ones():
                return self.left.average(a)[..., None]
            case Ones(), Nonlinear():
                return self.right.average(b)[..., None, :]
            case ((Product() | Bias()), Nonlinear()):
                return self._stein(a, b, self.right)
            case Nonlinear(), (Product() | Bias()):
                return self._stein(a, b, self.left)
            case _:
                return None

    def _nonlinear(self, a: Nonlinear, b: Nonlinear) -> Tensor:
        u, v = argument(self.left, a), argument(self.right, b)
        if isinstance(a.function, JointActivation) or isinstance(b.function, JointActivation):
            return self.coupled(a, b).moment(
                self.left.covariance(u, u), self.right.covariance(v, v), self.covariance(u, v)
            )
        p, q, c = self.pair(u, v)
        f, g = elementwise(a), elementwise(b)
        return f.moment(p, q, c) if f == g else polar_pair(f, g, p, q, c)

    def pair(self, u: Vector, v: Vector) -> tuple[Tensor, Tensor, Tensor]:
        """What an elementwise V-transform takes: variances (..., P, 1), (..., 1, Q), covariance."""
        p, q = self.left.variance(u)[..., :, None], self.right.variance(v)[..., None, :]
        return p, q, self.covariance(u, v)

    def coupled(self, a: Nonlinear, b: Nonlinear) -> JointActivation:
        """The function both share, for functions that couple positions."""
        if not isinstance(a.function, JointActivation) or a.function != b.function:
            raise NotImplementedError(
                f"no rule for the product of {a.name} and {b.name}; pass samples=… to sample it"
            )
        return a.function

    def _stein(self, a: Vector, b: Vector, side: Joint) -> Tensor | None:
        """E Z^g φ(u) = Cov(g, u) E φ'(u) (Stein's lemma), the nonlinearity on the given side."""
        on_right = isinstance(b, Nonlinear)
        node = b if on_right else a
        assert isinstance(node, Nonlinear)
        inner = argument(side, node)
        value = self.covariance(a, inner) if on_right else self.covariance(inner, b)
        if not value.any():
            return None
        slope = elementwise(node).mean_slope(side.variance(inner))
        return value * (slope[..., None, :] if on_right else slope[..., :, None])

    def average(self, a: Nonlinear) -> Tensor:
        """E φ(u): (..., P)."""
        return elementwise(a).mean(self.variance(argument(self, a)))

    def expand(self, vector: Vector) -> Expansion:
        """The vector as a combination of leaves (of a joint of inputs with themselves)."""
        if vector not in self._expansions:
            self._expansions[vector] = self._expand(vector)
        return self._expansions[vector]

    def _expand(self, vector: Vector) -> Expansion:
        if isinstance(vector, Product):
            return {vector: 1.0} | self._memory(vector)
        if not isinstance(vector, Linear):
            return {vector: 1.0}
        total: Expansion = {}
        for coefficient, term in vector.terms:
            value = self._value(coefficient)
            for leaf, factor in self.expand(term).items():
                part = compose(value, factor)
                total[leaf] = combine(total[leaf], part) if leaf in total else part
        return {a: f for a, f in total.items() if not isinstance(f, Tensor) or bool(f.any())}

    def _value(self, coefficient: Coefficient) -> Factor:
        if isinstance(coefficient, Moment):
            return coefficient.function(*(self.covariance(a, b) for a, b in coefficient.pairs))
        return coefficient.to(self.x.dtype) if isinstance(coefficient, Tensor) else coefficient

    def _memory(self, product: Product) -> Expansion:
        """Ż: what W x remembers of the vectors y for which Wᵀ y was used to build x."""
        total: Expansion = {}
        for other in ordered(product.argument):
            if not isinstance(other, Product) or not _transposes(product, other):
                continue
            rate = compose(product.matrix.scale, self.derivative(product.argument, other))
            for leaf, factor in self.expand(other.argument).items():
                part = compose(rate, factor)
                total[leaf] = combine(total[leaf], part) if leaf in total else part
        return total

    def derivative(self, vector: Vector, atom: Vector) -> Factor:
        """E ∂Z^vector/∂Z^atom: (..., P_vector, P_atom), or a number times the identity."""
        total: Factor = 0.0
        for leaf, factor in self.expand(vector).items():
            if leaf is atom:
                total = combine(total, factor)
            elif isinstance(leaf, Nonlinear):
                inner = argument(self, leaf)
                inside = self.expand(inner).get(atom)
                if inside is not None:
                    slope = elementwise(leaf).mean_slope(self.variance(inner)).diag_embed()
                    total = combine(total, compose(compose(factor, slope), inside))
        return total


def _same_matrix(a: Product, b: Product) -> bool:
    return a.matrix is b.matrix and a.transposed == b.transposed


def _transposes(a: Product, b: Product) -> bool:
    return a.matrix is b.matrix and a.transposed != b.transposed


def elementwise(node: Nonlinear) -> Activation:
    """The activation of a node that an exact rule treats coordinate by coordinate."""
    if not isinstance(node.function, Activation):
        raise NotImplementedError(f"no exact rule for {node.name} here; pass samples=… for it")
    return node.function


def argument(side: Joint, node: Nonlinear) -> Vector:
    """What the node's function is applied to, which an exact rule wants to be Gaussian and single.

    Raises:
        NotImplementedError: for several arguments, or an argument that is itself a nonlinearity.
    """
    inner = node.arguments[0]
    kinds = {type(leaf) for leaf in side.expand(inner)}
    if len(node.arguments) > 1 or not kinds <= {Product, Bias}:
        raise NotImplementedError(
            f"{node.name} is applied to {len(node.arguments)} argument(s) made of "
            f"{sorted(k.__name__ for k in kinds)}; exact rules take one Gaussian (a combination of "
            "matrix products and biases). Pass samples=… to sample it"
        )
    return inner


def joint(output: Vector, x: Tensor, y: Tensor) -> Joint:
    """All covariances of a program between inputs x (N, P, d) and y (N', P, d)."""
    left = Joint(output, x[:, None], x[:, None])
    right = Joint(output, y[None], y[None])
    both = Joint(output, x[:, None], y[None], (left, right))
    for part in (left, right, both):
        part.visit()
    return both
