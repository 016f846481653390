"""V-transforms of any function: by Gauss–Hermite, by polar quadrature, and by Hermite series."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bozzetto.tangent.activation import Activation, correlation

Function = Callable[[Tensor], Tensor]


@lru_cache(maxsize=64)
def _hermite(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights with Σ w f(x) = E f(z), z ~ N(0, 1)."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    return torch.from_numpy(x), torch.from_numpy(w / math.sqrt(2 * math.pi))


@lru_cache(maxsize=64)
def _legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2)


def derivative(function: Function) -> Function:
    """φ' by automatic differentiation of a coordinatewise φ."""

    def slope(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(function(x).sum(), x)
        return grad

    return slope


def growth(function: Function) -> str:
    """How φ grows, "polynomial" or "exponential": more than 2²⁰ times from ±30 to ±60."""
    x = torch.tensor([-60.0, -30.0, 30.0, 60.0], dtype=torch.float64)
    a, b, c, d = function(x).abs().clamp(min=1e-6)
    return "polynomial" if bool((a < 2**20 * b) & (d < 2**20 * c)) else "exponential"


def gaussian_pair(
    f: Function, g: Function, p: Tensor, q: Tensor, c: Tensor, *, nodes: int = 40
) -> Tensor:
    """E f(u) g(v) by the tensor product of two Gauss–Hermite rules; for smooth f and g."""
    x, w = (t.to(c.dtype) for t in _hermite(nodes))
    p, q, c = torch.broadcast_tensors(p, q, c)
    r = correlation(p, q, c)[1][..., None, None]
    u = p.sqrt()[..., None, None] * x[:, None]
    v = q.sqrt()[..., None, None] * (r * x[:, None] + ((1 - r) * (1 + r)).sqrt() * x)
    return torch.einsum("i,j,...ij->...", w, w, f(u) * g(v))


def polar_pair(
    f: Function, g: Function, p: Tensor, q: Tensor, c: Tensor, *, nodes: int = 40
) -> Tensor:
    """E f(u) g(v) in polar coordinates, for f and g that are smooth except at zero.

    u = √p ρ cos a and v = √q ρ cos(a − θ): a kink or jump at zero lies on a ray, and Gauss–Legendre
    panels between the four rays see smooth functions only. ρ runs to 12 (its weight there: 1e-32).
    """
    x, w = (t.to(c.dtype) for t in _legendre(nodes))
    p, q, c = torch.broadcast_tensors(p, q, c)
    theta = correlation(p, q, c)[1].arccos()
    half = torch.full_like(theta, math.pi / 2)
    rays = torch.stack([-half, theta - half, half, theta + half, 3 * half], dim=-1)
    width = rays.diff(dim=-1)[..., None]  # (..., 4, 1)
    angle = (rays[..., :-1, None] + width * x).flatten(-2)[..., None]  # (..., 4·nodes, 1)
    weight = (width * w / (2 * math.pi)).flatten(-2)
    radius = 12 * x
    value = f(p.sqrt()[..., None, None] * radius * angle.cos()) * g(
        q.sqrt()[..., None, None] * radius * (angle - theta[..., None, None]).cos()
    )
    radial = 12 * w * radius * (-(radius**2) / 2).exp()
    return torch.einsum("...a,r,...ar->...", weight, radial, value)


def _gaussian_mean(f: Function, p: Tensor, nodes: int) -> Tensor:
    """E f(√p z), each half of the line apart, so that a kink at zero does no harm."""
    x, w = (t.to(p.dtype) for t in _legendre(4 * nodes))
    z, w = torch.cat([-12 * x, 12 * x]), torch.cat([w, w]) * 12 / math.sqrt(2 * math.pi)
    return f(p.sqrt()[..., None] * z) @ (w * (-(z**2) / 2).exp())


@dataclass(frozen=True)
class Quadrature(Activation):
    """Any coordinatewise torch function, its moments by two-dimensional quadrature.

    rule: "hermite" (smooth φ) or "polar" (φ smooth except at zero). Costs nodes² (hermite) or
    4·nodes² (polar) evaluations of φ a pair; `error` tells what the rule is worth.
    """

    function: Function
    nodes: int = 40
    rule: Literal["hermite", "polar"] = "hermite"

    def __post_init__(self) -> None:
        object.__setattr__(self, "growth", growth(self.function))
        if self.rule not in ("hermite", "polar"):
            raise ValueError(f"a quadrature rule is 'hermite' or 'polar'; got {self.rule!r}")

    def __call__(self, x: Tensor) -> Tensor:
        """φ(x)."""
        return self.function(x)

    def _pair(self, f: Function, p: Tensor, q: Tensor, c: Tensor, nodes: int) -> Tensor:
        rule = gaussian_pair if self.rule == "hermite" else polar_pair
        return rule(f, f, p, q, c, nodes=nodes)

    def moment(self, p: Tensor, q: Tensor, c: Tensor) -> Tensor:
        """E φ(u) φ(v)."""
        return self._pair(self.function, p, q, c, self.nodes)

    def slope(self, p: Tensor, q: Tensor, c: Tensor) -> Tensor:
        """E φ'(u) φ'(v)."""
        return self._pair(derivative(self.function), p, q, c, self.nodes)

    def mean(self, p: Tensor) -> Tensor:
        """E φ(u)."""
        return _gaussian_mean(self.function, p, self.nodes)

    def mean_slope(self, p: Tensor) -> Tensor:
        """E φ'(u)."""
        return _gaussian_mean(derivative(self.function), p, self.nodes)

    def error(self, p: Tensor, q: Tensor, c: Tensor) -> float:
        """The largest change of `moment` or `slope` when the nodes are half as many again."""
        more = self.nodes * 3 // 2
        change = [
            (self._pair(f, p, q, c, more) - self._pair(f, p, q, c, self.nodes)).abs().max()
            for f in (self.function, derivative(self.function))
        ]
        return float(max(change))


@dataclass(frozen=True)
class HermiteSeries(Activation):
    """Any coordinatewise torch function, its moments by Mehler's formula.

    With a_k(p) = E φ(√p z) h_k(z), h_k the orthonormal Hermite polynomials, E φ(u)φ(v) =
    Σ a_k(p) a_k(q) r^k, and its derivative in c needs no φ'. One pair costs `terms` operations.
    """

    function: Function
    terms: int = 60

    def __post_init__(self) -> None:
        object.__setattr__(self, "growth", growth(self.function))

    def __call__(self, x: Tensor) -> Tensor:
        """φ(x)."""
        return self.function(x)

    def coefficients(self, p: Tensor) -> Tensor:
        """a_k(p): p (...) -> (terms, ...)."""
        x, w = (t.to(p.dtype) for t in _legendre(8 * self.terms))
        z, w = torch.cat([-12 * x, 12 * x]), torch.cat([w, w]) * 12 / math.sqrt(2 * math.pi)
        value = self.function(p.sqrt()[..., None] * z) * (w * (-(z**2) / 2).exp())
        before, now, found = torch.zeros_like(z), torch.ones_like(z), []
        for k in range(self.terms):
            found.append(value @ now)
            before, now = now, (z * now - math.sqrt(k) * before) / math.sqrt(k + 1)
        return torch.stack(found)

    def _series(self, p: Tensor, q: Tensor, c: Tensor, first: int) -> Tensor:
        r = correlation(p, q, c)[1]
        total = torch.zeros_like(c)
        a, b = (self._rises(v) if first else self.coefficients(v) for v in (p, q))
        for k in reversed(range(first, self.terms)):
            total = total * r + (k if first else 1) * a[k] * b[k]
        return total

    def _rises(self, p: Tensor) -> Tensor:
        """a_k(p)/√p: p (...) -> (terms, ...); for p = 0 their limits, φ'(0) for k = 1 and 0."""
        limit = torch.zeros(self.terms, *[1] * p.ndim, dtype=p.dtype)
        limit[1] = derivative(self.function)(torch.zeros(1, dtype=p.dtype))
        return torch.where(p > 0, self.coefficients(p) / p.sqrt(), limit)

    def moment(self, p: Tensor, q: Tensor, c: Tensor) -> Tensor:
        """E φ(u) φ(v)."""
        return self._series(p, q, c, 0)

    def slope(self, p: Tensor, q: Tensor, c: Tensor) -> Tensor:
        """E φ'(u) φ'(v)."""
        return self._series(p, q, c, 1)

    def mean(self, p: Tensor) -> Tensor:
        """E φ(u)."""
        return self.coefficients(p)[0]

    def mean_slope(self, p: Tensor) -> Tensor:
        """E φ'(u)."""
        return self._rises(p)[1]

    def error(self, p: Tensor) -> float:
        """A bound on the error of `moment`: what the kept terms miss of E φ(√p z)²."""
        square = _gaussian_mean(lambda x: self.function(x) ** 2, p, 2 * self.terms)
        return float((square - (self.coefficients(p) ** 2).sum(0)).abs().max())
