"""Second pass: the least-squares problem in a tangent space, as sums that shards combine."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bozzetto.linalg import solve_psd
from bozzetto.regress.designs import Design
from bozzetto.regress.directions import Coordinates, Directions
from bozzetto.regress.moments import Block
from bozzetto.tensors import multi_product

__all__ = ["LeastSquares", "Sketched", "covariates", "pack", "sketch_block", "unpack"]


@dataclass
class LeastSquares:
    """Centred sums of a linear regression whose rows come in g groups with an intercept each.

    Attributes:
        weight: Σ w over observations.
        mean: means of the covariates, (g, m).
        mean_y: means of the responses, (g, q).
        gram: Σ w (x − x̄)(x − x̄)ᵀ over observations and groups, (m, m).
        moment: Σ w (x − x̄)(y − ȳ)ᵀ, (m, q).
    """

    weight: float
    mean: Tensor
    mean_y: Tensor
    gram: Tensor
    moment: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor, w: Tensor) -> "LeastSquares":
        """From covariates x (b, g, m), responses y (b, g, q) and weights w (b,)."""
        total, root = w.sum(), w.sqrt()[:, None, None]
        mean, mean_y = torch.tensordot(w, x, 1) / total, torch.tensordot(w, y, 1) / total
        x, y = ((x - mean) * root).flatten(0, 1), ((y - mean_y) * root).flatten(0, 1)
        return cls(float(total), mean, mean_y, x.T @ x, x.T @ y)

    def merge(self, other: "LeastSquares") -> "LeastSquares":
        """The sums of both sets of observations (Chan, Golub, LeVeque 1983)."""
        total = self.weight + other.weight
        share = other.weight / total
        step, step_y = other.mean - self.mean, other.mean_y - self.mean_y
        scaled = step.T * (self.weight * share)
        self.gram += other.gram + scaled @ step
        self.moment += other.moment + scaled @ step_y
        self.mean, self.mean_y = self.mean + share * step, self.mean_y + share * step_y
        self.weight = total
        return self

    def about_zero(self) -> "LeastSquares":
        """The same sums with nothing subtracted: the regression without intercepts."""
        scaled = self.mean.T * self.weight
        none, none_y = torch.zeros_like(self.mean), torch.zeros_like(self.mean_y)
        gram, moment = self.gram + scaled @ self.mean, self.moment + scaled @ self.mean_y
        return LeastSquares(self.weight, none, none_y, gram, moment)

    def turned(self, overlap: Tensor) -> "LeastSquares":
        """The sums for the covariates overlap @ x: (m_new, m) -> m_new unknowns."""
        gram, moment = overlap @ self.gram @ overlap.T, overlap @ self.moment
        return LeastSquares(self.weight, self.mean @ overlap.T, self.mean_y, gram, moment)

    def scale(self) -> float:
        """Mean of the Gram matrix's diagonal."""
        return float(self.gram.diagonal().mean())

    def solve(self, ridge: float, damping: float, around: Tensor | None = None) -> Tensor:
        """Argmin of ‖y − xθ‖² + ridge ‖θ‖² + damping ‖θ − around‖², of least norm if flat; (m, q).

        `around` is zero unless given.
        """
        noise = self.weight * float(
            (64 * torch.finfo(self.mean.dtype).eps * self.mean).square().sum()
        )
        if ridge + damping == 0 and float(self.gram.trace()) <= noise:
            return torch.zeros_like(self.moment)  # covariates that are constant but for rounding
        gram = self.gram + (ridge + damping) * torch.eye(len(self.gram), dtype=self.gram.dtype)
        right = self.moment if around is None else self.moment + damping * around
        factor, failed = torch.linalg.cholesky_ex(gram)
        pivots = factor.diagonal()
        # The pivots bound the condition number from below; past 1/√ε the eigenvectors decide.
        if failed == 0 and len(pivots) and pivots.min() > 1e-4 * pivots.max():
            return torch.cholesky_solve(right, factor)
        return solve_psd(gram, right)

    def explained(self, theta: Tensor) -> float:
        """By how much θ lowers the sum of squares: 2 tr θᵀ moment − tr θᵀ gram θ."""
        return float((theta * (2 * self.moment - self.gram @ theta)).sum())


@dataclass
class Sketched:
    """The sums of the regression sketched to a tangent space.

    `main` has the core and the arms of the covariates' modes as unknowns; it sees the part of the
    response in the span of the response's directions. What lies outside decouples into one small
    regression a response mode (`outside`), because the response's directions are orthonormal.
    """

    main: LeastSquares
    outside: list[LeastSquares]

    def merge(self, other: "Sketched") -> "Sketched":
        """The sums of both sets of observations."""
        self.main.merge(other.main)
        for mine, theirs in zip(self.outside, other.outside, strict=True):
            mine.merge(theirs)
        return self

    def about_zero(self) -> "Sketched":
        """The same sums for the regression without intercepts."""
        return Sketched(self.main.about_zero(), [part.about_zero() for part in self.outside])


def covariates(x: Design, directions: Directions) -> tuple[Tensor, Tensor]:
    """What a tangent tensor is multiplied with: (b, R, m), R = Π ranks of the response's modes.

    Columns: the core, then the arms mode by mode. Also the plain core covariates, (b, Π ranks of
    the covariates' modes). Nothing larger than p_k r_{-k} a sample is formed.
    """
    order = len(x.shape)
    spans, ranks = directions.spans[:order], directions.ranks
    inner, outer = math.prod(ranks[:order]), math.prod(ranks[order:])
    partials = x.partials(spans)
    core = torch.einsum("bpr,pa->bar", partials[0], spans[0]).flatten(1)  # (b, inner)
    columns = [torch.einsum("bi,oc->boic", core, torch.eye(outer).double()).flatten(2)]
    for k, partial in enumerate(partials):
        rows = directions.rows[k].unflatten(0, (inner // ranks[k], outer))
        arms = torch.einsum("bpi,ior->bpor", partial, rows)
        columns.append(torch.einsum("bpor,pa->boar", arms, directions.complements[k]).flatten(2))
    return torch.cat(columns, dim=2), core


def sketch_block(block: Block, directions: Directions) -> Sketched:
    """The sums of one block of observations."""
    x, core = covariates(block.x, directions)
    order = len(block.x.shape)
    spans = [u.T for u in directions.spans[order:]]
    y = multi_product(block.y, spans, first=1).reshape(len(core), -1, 1)  # (b, R, 1)
    outside = [_outside(block, core, directions, t) for t in range(order, len(directions.spans))]
    return Sketched(LeastSquares.of(x, y, block.weight), outside)


def _outside(block: Block, core: Tensor, directions: Directions, mode: int) -> LeastSquares:
    """The regression for the arm of one response mode: r_t unknowns for each of q_t − r_t."""
    order = len(block.x.shape)
    others = math.prod(directions.ranks[order:]) // directions.ranks[mode]
    rows = directions.rows[mode].unflatten(0, (core.shape[1], others))
    x = torch.einsum("bi,ior->bor", core, rows)
    matrices = [u.T for u in directions.spans[order:]]
    matrices[mode - order] = directions.complements[mode].T
    y = multi_product(block.y, matrices, first=1)  # (b, …, q_t − r_t, …)
    y = y.movedim(mode - order + 1, -1).reshape(len(core), others, y.shape[mode - order + 1])
    return LeastSquares.of(x, y, block.weight)


def pack(core: Tensor, arms: list[Tensor]) -> Tensor:
    """The unknowns of `main` as one column: (m, 1)."""
    return torch.cat([core.flatten(), *[arm.flatten() for arm in arms]])[:, None]


def unpack(theta: Tensor, outside: list[Tensor], directions: Directions) -> Coordinates:
    """Coordinates from the solutions of `main` (m, 1) and `outside` (r_t, q_t − r_t)."""
    ranks = directions.ranks
    inside = len(ranks) - len(outside)
    shapes = [(c.shape[1], r) for c, r in zip(directions.complements, ranks, strict=True)][:inside]
    sizes = [math.prod(ranks), *[a * r for a, r in shapes]]
    core, *arms = theta.flatten().split(sizes)
    arms = [arm.reshape(shape) for arm, shape in zip(arms, shapes, strict=True)]
    return Coordinates(core.reshape(ranks), (*arms, *[part.T for part in outside]))
