"""Activations and their V-transforms: the Gaussian expectations a kernel needs of a function."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Activation(ABC):
    """A function φ applied coordinatewise, with its moments under (u, v) ~ N(0, [[p, c], [c, q]]).

    p, q and c are tensors that broadcast against each other; p and q are variances (> 0 unless a
    formula says otherwise). `growth` is "polynomial" when φ and φ' are polynomially bounded, as the
    theorem for tangent kernels asks (Yang, arXiv 2006.14548).
    """

    growth = "polynomial"

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """φ(x), coordinatewise."""

    @abstractmethod
    def moment(self, p: Tensor, q: Tensor, c: Tensor) -> Tensor:
        """E φ(u) φ(v)."""

    @abstractmethod
    def slope(self, p: Tensor, q: Tensor, c: Tensor) -> Tensor:
        """E φ'(u) φ'(v), the derivative of `moment` in c."""

    def both(self, p: Tensor, q: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """(`moment`, `slope`), which may be cheaper together."""
        return self.moment(p, q, c), self.slope(p, q, c)

    @abstractmethod
    def mean(self, p: Tensor) -> Tensor:
        """E φ(u)."""

    @abstractmethod
    def mean_slope(self, p: Tensor) -> Tensor:
        """E φ'(u)."""


def correlation(p: Tensor, q: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """(√(pq), c/√(pq)): the second clamped to [−1, 1] and snapped to ±1 within rounding.

    Correlations within 64 units of rounding of one are those of a vector with itself; left alone,
    arccos would turn an error ε into √ε.
    """
    scale = (p * q).sqrt()
    r = torch.where(scale > 0, c / scale, torch.zeros_like(c)).clamp(-1, 1)
    return scale, torch.where(1 - r.abs() < 64 * torch.finfo(r.dtype).eps, r.sign(), r)


@dataclass(frozen=True)
class Identity(Activation):
    """φ(x) = x."""

    def __call__(self, x: Tensor) -> Tensor:
        """φ(x)."""
        return x

    def moment(self, p: Tensor, q: Tensor, c: Tensor) -> Tensor:
        """E φ(u) φ(v)."""
        return c + 0 * (p + q)

    def slope(self, p: Tensor, q: Tensor, c: Tensor) -> Tensor:
        """E φ'(u) φ'(v)."""
        return torch.ones_like(p + q + c)

    def mean(self, p: Tensor) -> Tensor:
        """E φ(u)."""
        return torch.zeros_like(p)

    def mean_slope(self, p: Tensor) -> Tensor:
        """E φ'(u)."""
        return torch.ones_like(p)


@dataclass(frozen=True)
class Rectifier(Activation):
    """φ(x) = a·min(x, 0) + b·max(x, 0): ReLU (a = 0), leaky ReLU, absolute value (a = −1).

    Arc-cosine kernels of Cho and Saul (2009), with θ the angle and sin θ = √((1−r)(1+r)).
    """

    negative: float = 0.0
    positive: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """φ(x)."""
        return self.negative * x.clamp(max=0) + self.positive * x.clamp(min=0)

    def moment(self, p: Tensor, q: Tensor, c: Tensor) -> Tensor:
        """E φ(u) φ(v)."""
        a, b = self.negative, self.positive
        scale, r = correlation(p, q, c)
        sine = ((1 - r) * (1 + r)).sqrt()
        relu = scale / (2 * math.pi) * (sine + (math.pi - r.arccos()) * r)
        return (b - a) ** 2 * relu + a * b * scale * r

    def slope(self, p: Tensor, q: Tensor, c: Tensor) -> Tensor:
        """E φ'(u) φ'(v)."""
        a, b = self.negative, self.positive
        r = correlation(p, q, c)[1]
        return (b - a) ** 2 * (math.pi - r.arccos()) / (2 * math.pi) + a * b

    def both(self, p: Tensor, q: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The two in one pass."""
        # In place and in one pass: kernels spend most of their time here.
        a, b = self.negative, self.positive
        limits = torch.finfo(c.dtype)
        scale = p.sqrt().clamp(min=limits.tiny**0.5) * q.sqrt().clamp(min=limits.tiny**0.5)
        r = (c / scale).clamp_(-1, 1)
        r.masked_fill_(r > 1 - 64 * limits.eps, 1.0)
        slope = r.arccos().sub_(math.pi).mul_(-1 / (2 * math.pi))
        moment = (1 - r).mul_(1 + r).sqrt_().mul_(1 / (2 * math.pi)).addcmul_(slope, r)
        if (a, b) != (0, 1):
            moment.mul_((b - a) ** 2).add_(r, alpha=a * b)
            slope.mul_((b - a) ** 2).add_(a * b)
        return moment.mul_(scale), slope

    def mean(self, p: Tensor) -> Tensor:
        """E φ(u)."""
        return (self.positive - self.negative) * (p / (2 * math.pi)).sqrt()

    def mean_slope(self, p: Tensor) -> Tensor:
        """E φ'(u)."""
        return torch.full_like(p, (self.positive + self.negative) / 2)


@dataclass(frozen=True)
class Step(Activation):
    """φ(x) = 1 for x > 0 and 0 otherwise. Its tangent kernel is infinite: only `moment` exists."""

    def __call__(self, x: Tensor) -> Tensor:
        """φ(x)."""
        return (x > 0).to(x.dtype)

    def moment(self, p: Tensor, q: Tensor, c: Tensor) -> Tensor:
        """E φ(u) φ(v)."""
        return Rectifier().slope(p, q, c)

    def slope(self, p: Tensor, q: Tensor, c: Tensor) -> Tensor:
        """E φ'(u) φ'(v)."""
        raise ValueError("a step has no gradient: its network has an NNGP but no tangent kernel")

    def mean(self, p: Tensor) -> Tensor:
        """E φ(u)."""
        return torch.full_like(p, 0.5)

    def mean_slope(self, p: Tensor) -> Tensor:
        """E φ'(u)."""
        return (2 * math.pi * p).rsqrt()


@dataclass(frozen=True)
class Erf(Activation):
    """φ(x) = erf(x) (Williams 1997)."""

    def __call__(self, x: Tensor) -> Tensor:
        """φ(x)."""
        return torch.erf(x)

    def moment(self, p: Tensor, q: Tensor, c: Tensor) -> Tensor:
        """E φ(u) φ(v)."""
        return 2 / math.pi * (c / ((p + 0.5) * (q + 0.5)).sqrt()).clamp(-1, 1).arcsin()

    def slope(self, p: Tensor, q: Tensor, c: Tensor) -> Tensor:
        """E φ'(u) φ'(v)."""
        return 4 / math.pi * ((1 + 2 * p) * (1 + 2 * q) - 4 * c**2).rsqrt()

    def mean(self, p: Tensor) -> Tensor:
        """E φ(u)."""
        return torch.zeros_like(p)

    def mean_slope(self, p: Tensor) -> Tensor:
        """E φ'(u)."""
        return 2 / math.sqrt(math.pi) * (1 + 2 * p).rsqrt()


@dataclass(frozen=True)
class Exp(Activation):
    """φ(x) = exp(x/s). Its NNGP exists; it grows too fast for the tangent kernel's theorem."""

    scale: float = 1.0
    growth = "exponential"

    def __call__(self, x: Tensor) -> Tensor:
        """φ(x)."""
        return (x / self.scale).exp()

    def moment(self, p: Tensor, q: Tensor, c: Tensor) -> Tensor:
        """E φ(u) φ(v)."""
        return ((p + 2 * c + q) / (2 * self.scale**2)).exp()

    def slope(self, p: Tensor, q: Tensor, c: Tensor) -> Tensor:
        """E φ'(u) φ'(v)."""
        return self.moment(p, q, c) / self.scale**2

    def mean(self, p: Tensor) -> Tensor:
        """E φ(u)."""
        return (p / (2 * self.scale**2)).exp()

    def mean_slope(self, p: Tensor) -> Tensor:
        """E φ'(u)."""
        return self.mean(p) / self.scale


@dataclass(frozen=True)
class Sin(Activation):
    """φ(x) = sin(x)."""

    def __call__(self, x: Tensor) -> Tensor:
        """φ(x)."""
        return x.sin()

    def moment(self, p: Tensor, q: Tensor, c: Tensor) -> Tensor:
        """E φ(u) φ(v)."""
        half = (p + q) / 2
        return ((c - half).exp() - (-c - half).exp()) / 2

    def slope(self, p: Tensor, q: Tensor, c: Tensor) -> Tensor:
        """E φ'(u) φ'(v)."""
        half = (p + q) / 2
        return ((c - half).exp() + (-c - half).exp()) / 2

    def mean(self, p: Tensor) -> Tensor:
        """E φ(u)."""
        return torch.zeros_like(p)

    def mean_slope(self, p: Tensor) -> Tensor:
        """E φ'(u)."""
        return (-p / 2).exp()


@dataclass(frozen=True)
class Gelu(Activation):
    """φ(x) = x Φ(x), by Stein's lemma on the orthant probability of (u + z, v + z')."""

    def __call__(self, x: Tensor) -> Tensor:
        """φ(x)."""
        return torch.nn.functional.gelu(x)

    def _parts(self, p: Tensor, q: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        outer = (1 + p) * (1 + q)
        det = outer - c**2
        orthant = 0.25 + (c / outer.sqrt()).arcsin() / (2 * math.pi)
        m = 1 - p / (1 + p) - q / (1 + q)
        return orthant, det, m, p * q + c**2 * m

    def moment(self, p: Tensor, q: Tensor, c: Tensor) -> Tensor:
        """E φ(u) φ(v)."""
        orthant, det, _, top = self._parts(p, q, c)
        return c * orthant + top / (2 * math.pi * det.sqrt())

    def slope(self, p: Tensor, q: Tensor, c: Tensor) -> Tensor:
        """E φ'(u) φ'(v)."""
        orthant, det, m, top = self._parts(p, q, c)
        return orthant + c * (1 + 2 * m + top / det) / (2 * math.pi * det.sqrt())

    def mean(self, p: Tensor) -> Tensor:
        """E φ(u)."""
        return p / (2 * math.pi * (1 + p)).sqrt()

    def mean_slope(self, p: Tensor) -> Tensor:
        """E φ'(u)."""
        return torch.full_like(p, 0.5)


relu = Rectifier()
