"""Batch normalisation followed by ReLU: V-transforms within a batch and between two batches.

Yang, *Tensor Programs II* (arXiv 2006.14548, appendix E.4). 1/|z|² = ∫ exp(−s|z|²) ds turns the
normalised Gaussian into Gaussians of smaller covariance; the integrals over s are done by the
trapezoid rule in log s, which converges geometrically.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from bozzetto.tangent.activation import correlation, relu
from bozzetto.tangent.joint import JointActivation

SMALL_BATCH = (
    "batch norm over fewer than 6 inputs: a finite network's tangent kernel has no finite variance "
    "there, so it approaches its limit slowly"
)


def centred(covariance: Tensor) -> Tensor:
    """G Σ G' with G = I − 11ᵀ/B: subtract the batch means of rows and of columns."""
    less = covariance - covariance.mean(-1, keepdim=True)
    return less - less.mean(-2, keepdim=True)


def rectified(k: Tensor) -> Tensor:
    """E relu(u) relu(u)ᵀ for u ~ N(0, k): (..., B, B)."""
    p = k.diagonal(dim1=-2, dim2=-1)
    return relu.moment(p[..., :, None], p[..., None, :], k)


def rectified_slope(k: Tensor) -> Tensor:
    """E relu'(u) relu'(u)ᵀ."""
    p = k.diagonal(dim1=-2, dim2=-1)
    return relu.slope(p[..., :, None], p[..., None, :], k)


def rectified_adjoint(k: Tensor, gradient: Tensor) -> Tensor:
    """The adjoint of the derivative of `rectified` at k, applied to a symmetric gradient.

    Off the diagonal g_ij (π − θ_ij)/2π; on it g_ii/2 + Σ_j g_ij √(k_jj/k_ii) sin θ_ij / 2π, which
    is what moving a variance does to the moments.
    """
    p = k.diagonal(dim1=-2, dim2=-1)
    r = correlation(p[..., :, None], p[..., None, :], k)[1]
    sine = ((1 - r) * (1 + r)).sqrt()
    ratio = (p[..., None, :] / p[..., :, None]).sqrt()
    inner = gradient * (math.pi - r.arccos()) / (2 * math.pi)
    moved = (gradient * ratio * sine / (2 * math.pi)).sum(-1)
    return inner + moved.diag_embed()


def rectified_push(k: Tensor, change: Tensor) -> Tensor:
    """The derivative of `rectified` at k along a symmetric change: the adjoint of the above."""
    p = k.diagonal(dim1=-2, dim2=-1)
    r = correlation(p[..., :, None], p[..., None, :], k)[1]
    sine = ((1 - r) * (1 + r)).sqrt()
    ratio = (p[..., None, :] / p[..., :, None]).sqrt()
    moved = change.diagonal(dim1=-2, dim2=-1)[..., :, None] * ratio
    return change * (math.pi - r.arccos()) / (2 * math.pi) + (moved + moved.mT) * sine / (
        4 * math.pi
    )


def _upper(eigenvalues: Tensor, power: float, reach: float) -> float:
    """The log s after which s^power ∏(1 + 2sλ)^−½ is below e^−reach of its largest value.

    Raises:
        ValueError: if it does not decay: the limit is infinite; or if all eigenvalues are zero.
    """
    t = torch.arange(-40.0, 400.0, 0.5, dtype=eigenvalues.dtype)
    height = power * t - 0.5 * torch.log1p(2 * t.exp()[:, None] * eigenvalues[..., None, :]).sum(-1)
    alive = (height > height.amax(-1, keepdim=True) - reach).reshape(-1, len(t)).any(0)
    if bool(alive[-1]) or not bool(eigenvalues.isfinite().all()):
        raise ValueError(
            "the gradient through batch norm has no finite limit: it needs a batch of at least 4 "
            "inputs that span 3 directions about their mean"
        )
    return float(t[alive.nonzero()[-1] + 1])


def _grid(lower: float, upper: float, step: float) -> Tensor:
    return torch.arange(lower, upper + step, step, dtype=torch.float64)


@dataclass(frozen=True)
class BatchNormRectifier(JointActivation):
    """relu(batchnorm(x)) with ε = 0 and no affine part, over the P positions as the batch.

    `tolerance` sets step and reach of the quadrature; the relative error is of that order (see
    `error`). Below batch 6 the fluctuations of finite networks have no variance, below 4 the
    gradient has no limit.
    """

    tolerance: float = 1e-8
    growth = "polynomial"

    def __call__(self, x: Tensor) -> Tensor:
        """φ(x)."""
        less = x - x.mean(-1, keepdim=True)
        return (less / less.square().mean(-1, keepdim=True).sqrt()).relu()

    def __post_init__(self) -> None:
        if not 1e-14 <= self.tolerance <= 1e-2:
            raise ValueError(f"a tolerance is between 1e-14 and 1e-2; got {self.tolerance}")

    @property
    def _reach(self) -> float:
        return 5 - math.log(self.tolerance)  # a margin: V's own singularities lie nearer

    @property
    def _step(self) -> float:
        """The nearest singularities in log s are at ±iπ: the error is exp(−2π²/step)."""
        return 2 * math.pi**2 / self._reach

    def moment(self, left: Tensor, right: Tensor, cross: Tensor) -> Tensor:
        """E φ(u) φ(v)."""
        return self._pairs(None, left, right, cross)

    def pull(self, gradient: Tensor, left: Tensor, right: Tensor, cross: Tensor) -> Tensor:
        """As the contract says, pair by pair of batches."""
        if min(left.shape[-1], right.shape[-1]) < 6:
            warnings.warn(SMALL_BATCH, stacklevel=2)
        return self._pairs(gradient, left, right, cross)

    def _pairs(self, gradient: Tensor | None, left: Tensor, right: Tensor, cross: Tensor) -> Tensor:
        """Pair by pair of batches, in float64; a batch with itself takes one integral, not two."""
        kind = cross.dtype
        shape = torch.broadcast_shapes(
            cross.shape[:-2], () if gradient is None else gradient.shape[:-2]
        )
        left, right, cross = (
            t.double().expand(*shape, *t.shape[-2:]) for t in (left, right, cross)
        )
        result = torch.empty_like(cross, memory_format=torch.contiguous_format)
        if gradient is not None:
            gradient = gradient.double().expand(*shape, *gradient.shape[-2:])
        for i in torch.cartesian_prod(*map(torch.arange, shape)).reshape(-1, len(shape)).tolist():
            at = tuple(i)
            g = None if gradient is None else gradient[at]
            result[at] = self._pair(g, left[at], right[at], cross[at])
        return result.to(kind)

    def _pair(self, g: Tensor | None, left: Tensor, right: Tensor, cross: Tensor) -> Tensor:
        if left.shape == right.shape and _same(left, right) and _same(left, cross):
            return self.within(left) if g is None else self.within_pull(left, g)
        if g is None:
            return self.across(left, right, cross)
        return self.across_pull(left, right, cross, g)

    def within(self, covariance: Tensor) -> Tensor:
        """B ∫ δ V(K) ds: (B, B)."""
        _, weight, k = self._path(covariance, 0.0)
        return len(covariance) * torch.einsum("s,sij->ij", weight, rectified(k))

    def within_pull(self, covariance: Tensor, gradient: Tensor) -> Tensor:
        """B G [∫ δ (L₁ + L₂ − L₃) ds] G at a symmetric gradient: (B, B)."""
        gradient = (gradient + gradient.mT) / 2
        s, weight, k = self._path(covariance, 1.0)
        v, j = rectified(k), rectified_adjoint(k, gradient)
        kj = k @ j
        inner = (gradient * v).sum((-2, -1))[:, None, None]
        first = gradient * rectified_slope(k)
        second = (s**2 / 2)[:, None, None] * (inner * k + 2 * kj @ k)
        third = s[:, None, None] * (kj + kj.mT)
        total = torch.einsum("s,sij->ij", weight, first + second - third)
        return len(covariance) * centred(total)

    def within_push(self, covariance: Tensor, tangent: Tensor) -> Tensor:
        """E J tangent Jᵀ, the adjoint of `within_pull`: one evaluation instead of one a pair."""
        return self.within_both(covariance, tangent)[1]

    def within_both(self, covariance: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
        """`within` and `within_push` from the same nodes; each is (B, B)."""
        s, weight, k = self._path(covariance, 1.0)
        value, tangent = rectified(k), centred((tangent + tangent.mT) / 2)
        kt = k @ tangent
        inner = (k * tangent).sum((-2, -1))[:, None, None]
        s = s[:, None, None]
        change = s**2 * kt @ k - s * (kt + kt.mT)
        total = tangent * rectified_slope(k) + (s**2 / 2) * inner * value
        parts = torch.stack([value, total + rectified_push(k, change)])
        moment, pushed = len(covariance) * torch.einsum("s,psij->pij", weight, parts)
        return moment, pushed

    def _path(self, covariance: Tensor, power: float) -> tuple[Tensor, Tensor, Tensor]:
        """Nodes s, weights δ(s) ds and K(s) = S (I + 2sS)⁻¹ of the integrals within a batch."""
        values, vectors = torch.linalg.eigh(centred(covariance))
        values = values.clamp(min=0)
        values = torch.where(values > 1e-13 * values[-1], values, torch.zeros_like(values))
        unit = values.sum()
        upper = _upper(values / unit, power, self._reach)
        s = _grid(-self._reach - 1, upper, self._step).exp().to(values.dtype) / unit
        shrunk = 1 + 2 * s[:, None] * values
        weight = self._step * s * shrunk.log().sum(-1).mul(-0.5).exp()
        return s, weight, vectors * (values / shrunk)[:, None, :] @ vectors.mT

    def across(self, left: Tensor, right: Tensor, cross: Tensor) -> Tensor:
        """√(BB')/π ∫∫ (st)^−½ det(I + 2Ω)^−½ V(Π)₁₂: (B, B')."""
        n, _, _, weight, pi = self._plane(left, right, cross, 0.5)
        value = rectified(pi)[..., :n, n:]
        return torch.einsum("s,sij->ij", weight, value)

    def across_pull(self, left: Tensor, right: Tensor, cross: Tensor, gradient: Tensor) -> Tensor:
        """The adjoint between two batches, gradient (B, B') -> (B, B')."""
        n, s, t, weight, pi = self._plane(left, right, cross, 1.0)
        joint = torch.zeros_like(pi[0])
        joint[:n, n:], joint[n:, :n] = gradient, gradient.mT
        j = rectified_adjoint(pi, joint)
        inner = (gradient * rectified(pi)[..., :n, n:]).sum((-2, -1))[:, None, None]
        first = gradient * rectified_slope(pi)[..., :n, n:]
        second = 4 * s * t * (inner * pi + pi @ j @ pi)[..., :n, n:]
        third = 2 * (t * (j @ pi) + s * (pi @ j))[..., :n, n:]
        return centred(torch.einsum("s,sij->ij", weight, first + second - third))

    def across_push(self, left: Tensor, right: Tensor, cross: Tensor, tangent: Tensor) -> Tensor:
        """The adjoint of `across_pull`: (B, B') -> (B, B')."""
        n, s, t, weight, pi = self._plane(left, right, cross, 1.0)
        tangent = centred(tangent)
        corner = torch.zeros_like(pi[0])
        corner[:n, n:] = tangent
        inner = (pi[..., :n, n:] * tangent).sum((-2, -1))[:, None, None]
        down, up = corner @ pi, pi @ corner
        change = 4 * s * t * pi @ (corner + corner.mT) @ pi
        change = change - 2 * (t * (down + down.mT) + s * (up + up.mT))
        total = tangent * rectified_slope(pi)[..., :n, n:]
        total = total + 4 * s * t * inner * rectified(pi)[..., :n, n:]
        total = total + rectified_push(pi, change)[..., :n, n:]
        return torch.einsum("s,sij->ij", weight, total)

    def _plane(
        self, left: Tensor, right: Tensor, cross: Tensor, power: float
    ) -> tuple[int, Tensor, Tensor, Tensor, Tensor]:
        """Nodes (s, t), weights and Π = (I + 2S D)⁻¹ S of the integrals between two batches."""
        n, m = len(left), len(right)
        top = torch.cat([centred(left), centred(cross)], 1)
        joint = torch.cat([top, torch.cat([centred(cross).mT, centred(right)], 1)], 0)
        s = self._axis(joint[:n, :n], power)
        t = self._axis(joint[n:, n:], power)
        s, t = (a.flatten() for a in torch.meshgrid(s, t, indexing="ij"))
        rates = torch.cat([s[:, None].expand(-1, n), t[:, None].expand(-1, m)], 1)
        inside = torch.eye(n + m, dtype=s.dtype) + 2 * joint * rates[:, None, :]
        scale = self._step**2 * math.sqrt(n * m) / math.pi
        weight = scale * (s * t).sqrt() * torch.linalg.slogdet(inside)[1].mul(-0.5).exp()
        kept = weight > weight.max() * 1e-4 * self.tolerance
        pi = torch.linalg.solve(inside[kept], joint.expand(int(kept.sum()), -1, -1))
        s, t = s[kept][:, None, None], t[kept][:, None, None]
        return n, s, t, weight[kept], (pi + pi.mT) / 2

    def _axis(self, covariance: Tensor, power: float) -> Tensor:
        values = torch.linalg.eigvalsh(covariance).clamp(min=0)
        values = torch.where(values > 1e-13 * values[-1], values, torch.zeros_like(values))
        unit = values.sum()
        upper = _upper(values / unit, power, self._reach)
        grid = _grid(-2 * self._reach - 1, upper, self._step)
        return grid.exp().to(values.dtype) / unit

    def error(self, covariance: Tensor, gradient: Tensor) -> float:
        """The largest change of `within` and `within_pull` when the tolerance is squared."""
        fine = BatchNormRectifier(max(self.tolerance**2, 1e-15))
        changes = (
            self.within(covariance) - fine.within(covariance),
            self.within_pull(covariance, gradient) - fine.within_pull(covariance, gradient),
        )
        return max(float(c.abs().max()) for c in changes)


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs().max() <= 1e-12 * a.abs().max()).item())
