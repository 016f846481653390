"""Sign vectors chosen from the data: forward selection by the exact decrease of the error."""

from typing import NamedTuple

import torch
from torch import Tensor

from bozzetto.linalg import random_uniform
from bozzetto.moments import damped

_POWER = 4  # steps towards the leading direction; it only starts a search
_NOISE = 0.1  # of the last direction's length, so that no start is blind to the next direction
_RISE = 1e-5  # relative; smaller gains may be rounding
_CLIMBS = 20  # sets of flips a vector


class Chosen(NamedTuple):
    """Sign vectors S and an orthonormal basis of their span in the inner product of C."""

    signs: Tensor  # S: (k, d) of ±1
    triangle: Tensor  # Λ: (k, k), lower triangular, of S C Sᵀ = Λ Λᵀ
    images: Tensor  # Λ⁻¹ S C: (k, d); times a weight's transpose, its coordinates in the basis

    def first(self, k: int) -> "Chosen":
        """The first k: what choosing only k would have found."""
        return Chosen(self.signs[:k], self.triangle[:k, :k], self.images[:k])


def choose_signs(h: Tensor, c: Tensor, count: int) -> Chosen:
    """Sign vectors whose span explains the rows of h best in the inner product of c, greedily.

    Each next vector s maximises what it takes off the error of the best approximation in the span,
    ‖H C s‖² / sᵀ D s, with H what the span leaves of h, and D what it leaves of C (orthogonal
    least squares; Chen, Billings and Luo 1989). From the signs of the leading direction of H it
    climbs by flipping the entries that raise the quotient most, many at once while that helps. The
    search runs in float32: it has no right answer to lose; the basis is float64.

    Args:
        h: (q, d).
        c: (d, d) positive definite, or its diagonal (d,).
        count: k, at most d.
    """
    signs = _search(h / h.norm().clamp_min(1e-300), c / c.abs().max(), count).to(h.dtype)
    images = signs * c if c.ndim == 1 else signs @ c
    triangle = torch.linalg.cholesky(damped(images @ signs.mT, 1e-12))
    return Chosen(signs, triangle, torch.linalg.solve_triangular(triangle, images, upper=False))


def _search(h: Tensor, c: Tensor, count: int) -> Tensor:
    """The sign vectors, (count, d)."""
    d = h.shape[1]
    h = h if len(h) <= d else torch.linalg.qr(h).R  # only hᵀh matters
    ht = h.mT.contiguous()  # (d, q), as are all that are read by rows
    at = (ht * c.unsqueeze(1) if c.ndim == 1 else c @ ht).float()
    ht, c = ht.float(), c.float()
    noise = 2 * random_uniform(0, count * d).view(count, d).float() - 1
    signs, basis, images = (torch.zeros(count, d) for _ in range(3))
    start = noise[0]
    for i in range(count):
        start = _leading(ht, at, start / start.norm() + _NOISE * noise[i] / d**0.5)
        s, image = _climb(torch.where(start < 0, -1.0, 1.0), at, c, images[:i])
        u = s - (images[:i] @ s) @ basis[:i]
        length = (s @ image).clamp_min(1e-30).sqrt()
        signs[i], basis[i], images[i] = s, u / length, image / length
        explained = images[i] @ ht  # (q,)
        ht = ht - torch.outer(basis[i], explained)
        at = at - torch.outer(images[i], explained)
    return signs


def _leading(ht: Tensor, at: Tensor, start: Tensor) -> Tensor:
    """Towards the leading direction of H in the metric, by power iteration; (d,)."""
    for _ in range(_POWER):
        found = ht @ (start @ at)
        norm = found.norm()
        if not norm > 0:  # nothing is left to explain
            return start
        start = found / norm
    return start


def _climb(s: Tensor, at: Tensor, c: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Flip entries of s while ‖A s‖² / sᵀ D s rises, D = C − imagesᵀ images; s and D s."""
    seen = images.mT.contiguous()  # (d, i)
    gain_own = 4 * at.square().sum(1)
    cost_own = 4 * ((c if c.ndim == 1 else c.diagonal()) - seen.square().sum(1))
    left = s @ at
    image = (c * s if c.ndim == 1 else c @ s) - seen @ (s @ seen)
    gain, cost = left @ left, s @ image
    many = max(1, len(s) // 16)
    for _ in range(_CLIMBS):
        costs = (cost - 4 * s * image + cost_own).clamp_min(1e-6 * float(cost) + 1e-30)
        best = ((gain - 4 * s * (at @ left) + gain_own) / costs).topk(min(many, len(s)))
        rows = best.indices[best.values > gain / cost * (1 + _RISE)]
        if not len(rows):
            break
        while True:
            step = -2 * s[rows]
            new_left = left + step @ at[rows]
            new_image = image - seen @ (step @ seen[rows])
            if c.ndim == 1:
                new_image[rows] += c[rows] * step
            else:
                new_image += step @ c[rows]
            new_s = s.index_add(0, rows, step)
            new_gain, new_cost = new_left @ new_left, new_s @ new_image
            if len(rows) == 1 or new_gain / new_cost >= best.values[0]:
                break
            rows = rows[: max(1, len(rows) // 4)]
        s, left, image, gain, cost = new_s, new_left, new_image, new_gain, new_cost
        many = 2 * len(rows)
    return s, image
