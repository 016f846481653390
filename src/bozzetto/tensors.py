"""Tensor algebra: unfoldings, mode products and the Tucker approximations HOSVD, ST-HOSVD, HOOI."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Tucker",
    "check_ranks",
    "fold",
    "hooi",
    "hosvd",
    "leading",
    "mode_product",
    "multi_product",
    "st_hosvd",
    "unfold",
]


@dataclass(frozen=True)
class Tucker:
    """A tensor core ×₁ factors[0] … ×_d factors[d-1] with core (r₁, …, r_d), factors (p_k, r_k)."""

    core: Tensor
    factors: tuple[Tensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(p₁, …, p_d)."""
        return tuple(len(factor) for factor in self.factors)

    @property
    def ranks(self) -> tuple[int, ...]:
        """(r₁, …, r_d)."""
        return tuple(self.core.shape)

    def full(self) -> Tensor:
        """The tensor itself, (p₁, …, p_d)."""
        return multi_product(self.core, self.factors)

    def along(self, matrices: Sequence[Tensor]) -> "Tucker":
        """The tensor ×_k matrices[k] for every mode, still in Tucker form."""
        return Tucker(self.core, tuple(m @ f for m, f in zip(matrices, self.factors, strict=True)))

    def orthonormal(self) -> "Tucker":
        """The same tensor with orthonormal factors."""
        pairs = [torch.linalg.qr(factor) for factor in self.factors]
        core = multi_product(self.core, [r for _, r in pairs])
        return Tucker(core, tuple(q for q, _ in pairs))


def unfold(x: Tensor, mode: int) -> Tensor:
    """Mode-k unfolding M_k: (p₁, …, p_d) -> (p_k, the rest in order)."""
    return x.movedim(mode, 0).flatten(1) if x.ndim > 1 else x[:, None]


def fold(matrix: Tensor, mode: int, shape: Sequence[int]) -> Tensor:
    """The tensor of that shape whose mode-k unfolding is `matrix`."""
    rest = [size for k, size in enumerate(shape) if k != mode]
    return matrix.reshape(shape[mode], *rest).movedim(0, mode)


def mode_product(x: Tensor, matrix: Tensor, mode: int) -> Tensor:
    """X ×_mode matrix: (…, p, …) and (q, p) -> (…, q, …)."""
    mode = mode % x.ndim
    if mode == x.ndim - 1:
        return x @ matrix.T
    return (matrix @ x.flatten(mode + 1)).unflatten(-1, x.shape[mode + 1 :])


def multi_product(x: Tensor, matrices: Sequence[Tensor | None], *, first: int = 0) -> Tensor:
    """X times matrices[k] along mode first + k; None leaves a mode alone."""
    for k, matrix in enumerate(matrices):
        if matrix is not None:
            x = mode_product(x, matrix, first + k)
    return x


def check_ranks(shape: Sequence[int], ranks: Sequence[int]) -> None:
    """Raise unless a tensor of that shape can have these multilinear ranks.

    Raises:
        ValueError: for a wrong count, a rank below 1 or above its mode's size, or a rank above the
            product of the others (no tensor has such ranks).
    """
    if len(ranks) != len(shape):
        raise ValueError(
            f"one rank a mode is needed: {len(shape)} for shape {tuple(shape)}; "
            f"got ranks {tuple(ranks)}"
        )
    for k, (p, r) in enumerate(zip(shape, ranks, strict=True)):
        others = math.prod(ranks) // r if r > 0 else 0
        if not 1 <= r <= min(p, others):
            raise ValueError(
                f"the rank of mode {k} must be at least 1, at most its size {p} and at most the "
                f"product of the other ranks {others}; got ranks {tuple(ranks)}"
            )


def leading(matrix: Tensor, r: int) -> Tensor:
    """An orthonormal basis of the top r ≤ min(p, q) left singular directions: (p, q) -> (p, r).

    A wide matrix goes through its p × p Gram matrix: the singular values below √ε of the largest
    are not resolved, but nothing of size q is factored.
    """
    p, q = matrix.shape
    if q > p:
        return torch.linalg.eigh(matrix @ matrix.T)[1][:, -r:].flip(-1)
    return torch.linalg.svd(matrix, full_matrices=False)[0][:, :r]


def hosvd(x: Tensor, ranks: Sequence[int]) -> Tucker:
    """Truncated higher-order SVD (De Lathauwer, De Moor, Vandewalle 2000)."""
    check_ranks(x.shape, ranks)
    factors = tuple(leading(unfold(x, k), r) for k, r in enumerate(ranks))
    return Tucker(multi_product(x, [u.T for u in factors]), factors)


def st_hosvd(x: Tensor, ranks: Sequence[int]) -> Tucker:
    """Sequentially truncated HOSVD (Vannieuwenhoven et al. 2012), largest mode first.

    The squared error is at most the sum over modes of the dropped squared singular values.
    """
    check_ranks(x.shape, ranks)
    factors, core = [torch.empty(0)] * x.ndim, x
    for k in sorted(range(x.ndim), key=lambda k: -x.shape[k]):
        factors[k] = leading(unfold(core, k), ranks[k])
        core = mode_product(core, factors[k].T, k)
    return Tucker(core, tuple(factors))


def hooi(x: Tensor, ranks: Sequence[int], *, n_iter: int = 50, tol: float = 1e-6) -> Tucker:
    """Higher-order orthogonal iteration (De Lathauwer, De Moor, Vandewalle 2000) from ST-HOSVD.

    Each sweep cannot lower the norm of the core; it ends when the norm grows by less than the
    fraction `tol`, or after `n_iter` sweeps.

    Raises:
        ValueError: if no tensor of x's shape has these ranks (`check_ranks`).
    """
    tucker = st_hosvd(x, ranks)
    factors, core = list(tucker.factors), tucker.core
    for _ in range(n_iter):
        before = core.norm()
        for k, r in enumerate(ranks):
            others = [None if j == k else u.T for j, u in enumerate(factors)]
            core = multi_product(x, others)
            factors[k] = leading(unfold(core, k), r)
        core = mode_product(core, factors[-1].T, x.ndim - 1)
        if core.norm() - before <= tol * before:
            break
    return Tucker(core, tuple(factors))
