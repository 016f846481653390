"""Kernels of any program from samples of its vectors and of their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from bozzetto.tangent.program import (
    Bias,
    Coefficient,
    Linear,
    Moment,
    Nonlinear,
    Product,
    Respect,
    Vector,
    leaves,
)
from bozzetto.tangent.samples import Samples


class SampledGradients:
    """Z^{dv} for every vector v: `values[v]` is (S, N, P_v), or (1, N, P_v) where constant.

    `independent` takes Wᵀ as drawn afresh, as the GIA check permits; otherwise the Ż terms of the
    forward pass enter.
    """

    def __init__(self, forward: Samples, *, independent: bool) -> None:
        self.forward, self.independent = forward, independent
        self.values: dict[Vector, Tensor] = {}
        self._readouts: dict[object, Tensor] = {}
        output = forward.output
        self._last = leaves(output)
        self._put(output, forward.x.new_ones(1, len(forward.x), output.positions))
        for v in reversed(forward.order):
            if v in self.values:
                self._step(v, self.values[v])

    def _put(self, v: Vector, value: Tensor) -> None:
        self.values[v] = self.values[v] + value if v in self.values else value

    def _step(self, v: Vector, gradient: Tensor) -> None:
        match v:
            case Linear():
                for coefficient, term in v.terms:
                    self._put(term, self._adjoint(coefficient, gradient))
            case Nonlinear():
                for a, value in zip(v.arguments, self._vjp(v, gradient), strict=True):
                    self._put(a, value)
            case Product() if v in self._last:
                self._put(v.argument, self._readout(v) * gradient)
            case Product() if v.argument in self.forward.values:
                self._put(v.argument, self._through(v, gradient))
            case _:
                pass

    def _adjoint(self, coefficient: Coefficient, gradient: Tensor) -> Tensor:
        f = self.forward.factor(coefficient)
        return (f.mT @ gradient[..., None])[..., 0] if isinstance(f, Tensor) else f * gradient

    def _vjp(self, v: Nonlinear, gradient: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            inputs = [self.forward.values[a].detach().requires_grad_() for a in v.arguments]
            value = v.function(*inputs)
            return torch.autograd.grad(value, inputs, gradient.expand_as(value))

    def _readout(self, v: Product) -> Tensor:
        """Z of the readout's weights, the same for all inputs: (S, 1, 1)."""
        matrix = v.matrix
        if matrix not in self._readouts:
            draw = self.forward.noise.draw(1)[:, None]
            self._readouts[matrix] = matrix.gain * (matrix.mean + matrix.variance**0.5 * draw)
        return self._readouts[matrix]

    def _through(self, v: Product, gradient: Tensor) -> Tensor:
        z = self.forward
        columns = gradient.expand(z.samples, -1, -1).flatten(1)
        ahead = z.families.pop((v.matrix, v.transposed)) if self.independent else None
        value = z.multiply(v.matrix, not v.transposed, columns)
        if ahead is not None:
            z.families[v.matrix, v.transposed] = ahead
        return value.view(z.samples, len(z.x), v.positions)

    def gram(self, a: Vector, b: Vector) -> Tensor:
        """E Z^da Z^db: (N, P_a, N, P_b)."""
        size = max(len(self.values[a]), len(self.values[b]))
        return torch.einsum("snp,smq->npmq", self.values[a], self.values[b]) / size


def sampled_nngp(output: Vector, x: Tensor, samples: int, seed: int) -> Tensor:
    """The covariance of the output: (N, N, P, P)."""
    return Samples(output, x, samples, seed).gram(output, output).movedim(2, 1)


def sampled_ntk(
    output: Vector, x: Tensor, samples: int, seed: int, respect_to: Respect, *, independent: bool
) -> Tensor:
    """The tangent kernel (N, N); `independent` says that the GIA check holds.

    Raises:
        ValueError: without independence, for a program with moments (norms, attention): gradients
            would flow through them.
    """
    z = Samples(output, x, samples, seed)
    linear = [v for v in z.order if isinstance(v, Linear)]
    moments = [c for v in linear for c, _ in v.terms if isinstance(c, Moment)]
    if moments and not independent:
        raise ValueError("no rule for gradients through moments when the GIA check fails")
    gradients = SampledGradients(z, independent=independent)
    total = x.new_zeros(len(x), len(x))
    products = [
        v for v in z.order if isinstance(v, Product) and v.matrix.trained and v in gradients.values
    ]
    for a in products:
        for b in products:
            if a.matrix is b.matrix and a.transposed == b.transposed:
                value = gradients.gram(a, b) * z.gram(a.argument, b.argument)
                total += a.matrix.rate(respect_to) * value.sum((1, 3))
    for bias in gradients.values:
        if isinstance(bias, Bias) and bias.trained:
            total += bias.rate(respect_to) * gradients.gram(bias, bias).sum((1, 3))
    return total
