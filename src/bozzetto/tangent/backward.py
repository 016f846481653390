"""Backward rules: inner products of gradients, and the tangent kernel that they make.

Under the GIA check the backward pass behaves as if Wᵀ were drawn afresh and gradients of scalars
(attention weights, norms) vanish (*Tensor Programs II*, arXiv 2006.14548, Theorem 7.2).
"""

from __future__ import annotations

from collections import defaultdict
from typing import TypeAlias

import torch
from torch import Tensor

from bozzetto.tangent.forward import Factor, Joint, argument, compose, elementwise, transpose
from bozzetto.tangent.joint import JointActivation
from bozzetto.tangent.program import Bias, Nonlinear, Product, Respect, Vector
from bozzetto.tangent.quadrature import derivative, polar_pair

Uses: TypeAlias = dict[Vector, list[tuple[Product, Factor]]]
Inside: TypeAlias = dict[Vector, list[tuple[Nonlinear, Factor]]]


def _uses(side: Joint) -> tuple[Uses, Inside]:
    """Where each leaf goes into a matrix, and where each Gaussian goes into a nonlinearity."""
    products: Uses = defaultdict(list)
    insides: Inside = defaultdict(list)
    for node in side.order:
        if isinstance(node, Product):
            for leaf, factor in side.expand(node.argument).items():
                products[leaf].append((node, factor))
        elif isinstance(node, Nonlinear):
            for leaf, factor in side.expand(argument(side, node)).items():
                insides[leaf].append((node, factor))
    return products, insides


class Gradients:
    """E Z^{da} Z^{db} for leaves a at x and b at y.

    `seed` (..., P, P) is that of the output with itself: e_i e_jᵀ for the kernel between output
    positions i and j. Its leading axes, if it has any before (N, N'), run along.
    """

    def __init__(self, joint: Joint, output: Vector, seed: Tensor) -> None:
        self.joint, self.output, self.seed = joint, output, seed
        self.left, self.right = _uses(joint.left), _uses(joint.right)
        self._direct: dict[tuple[Vector, Vector], Tensor | None] = {}
        self._total: dict[tuple[Vector, Vector], Tensor | None] = {}

    def direct(self, a: Vector, b: Vector) -> Tensor | None:
        """The part that reaches both not through nonlinearities, but as they stand."""
        if (a, b) not in self._direct:
            parts = [self._seed(a, b)]
            for c, first in self.left[0].get(a, []):
                for d, second in self.right[0].get(b, []):
                    if c.matrix is d.matrix and c.transposed == d.transposed:
                        inner = self.total(c, d)
                        if inner is not None:
                            parts.append(_sandwich(first, c.matrix.scale * inner, second))
            self._direct[a, b] = _sum(parts)
        return self._direct[a, b]

    def _seed(self, a: Vector, b: Vector) -> Tensor | None:
        first = self.joint.left.expand(self.output).get(a)
        second = self.joint.right.expand(self.output).get(b)
        if first is None or second is None:
            return None
        return _sandwich(first, self.seed, second)

    def total(self, a: Vector, b: Vector) -> Tensor | None:
        """Everything: (..., P_a, P_b), None for zero."""
        if (a, b) not in self._total:
            parts = [self.direct(a, b)]
            for x, first in self.left[1].get(a, []):
                parts.append(self._half(x, b, first, left=True))
                for y, second in self.right[1].get(b, []):
                    parts.append(self._through(x, y, first, second))
            parts.extend(
                self._half(y, a, second, left=False) for y, second in self.right[1].get(b, [])
            )
            self._total[a, b] = _sum(parts)
        return self._total[a, b]

    def _through(self, x: Nonlinear, y: Nonlinear, first: Factor, second: Factor) -> Tensor | None:
        gradient = self.direct(x, y)
        if gradient is None:
            return None
        return _sandwich(first, self._pull(x, y, gradient), second)

    def _pull(self, x: Nonlinear, y: Nonlinear, gradient: Tensor) -> Tensor:
        joint = self.joint
        u, v = argument(joint.left, x), argument(joint.right, y)
        if isinstance(x.function, JointActivation) or isinstance(y.function, JointActivation):
            return joint.coupled(x, y).pull(
                gradient,
                joint.left.covariance(u, u),
                joint.right.covariance(v, v),
                joint.covariance(u, v),
            )
        p, q, c = joint.pair(u, v)
        f, g = elementwise(x), elementwise(y)
        if f == g:
            return gradient * f.slope(p, q, c)
        return gradient * polar_pair(derivative(f), derivative(g), p, q, c)

    def _half(self, x: Nonlinear, other: Vector, factor: Factor, *, left: bool) -> Tensor | None:
        """One branch through a nonlinearity, the other around it: E φ' by independence."""
        gradient = self.direct(x, other) if left else self.direct(other, x)
        if gradient is None:
            return None
        side = self.joint.left if left else self.joint.right
        slope = elementwise(x).mean_slope(side.variance(argument(side, x)))
        if left:
            return _sandwich(factor, gradient * slope[..., :, None], 1.0)
        return _sandwich(1.0, gradient * slope[..., None, :], factor)


def _sandwich(first: Factor, value: Tensor, second: Factor) -> Tensor:
    result = compose(compose(transpose(first), value), second)
    assert isinstance(result, Tensor)
    return result


def _sum(parts: list[Tensor | None]) -> Tensor | None:
    found = [p for p in parts if p is not None]
    return sum(found[1:], found[0]) if found else None


def tangent_kernel(joint: Joint, output: Vector, respect_to: Respect) -> Tensor:
    """Σ over weights, over the places of their use, ⟨D, C⟩ (ibid., Cor. 7.3): (N, N', P, P)."""
    size = output.positions
    pairs = torch.eye(size**2, dtype=joint.x.dtype).view(size**2, 1, 1, size, size)
    gradients = Gradients(joint, output, pairs)
    batch = torch.broadcast_shapes(joint.x.shape[:-2], joint.y.shape[:-2])
    total = joint.x.new_zeros(size**2, *batch)
    products = [n for n in joint.order if isinstance(n, Product) and n.matrix.trained]
    for a in products:
        for b in products:
            gradient = gradients.total(a, b) if a.matrix is b.matrix else None
            if gradient is not None:
                value = gradient * joint.covariance(a.argument, b.argument)
                total = total + a.matrix.rate(respect_to) * value.sum((-2, -1))
    for bias in (n for n in joint.order if isinstance(n, Bias) and n.trained):
        gradient = gradients.total(bias, bias)
        if gradient is not None:
            total = total + bias.rate(respect_to) * gradient.sum((-2, -1))
    return total.movedim(0, -1).unflatten(-1, (size, size))
