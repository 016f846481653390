"""Anderson acceleration: mix the last points so that the mix of their residuals is smallest."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from bozzetto.optim.mixing import Mixing, tail_sums

Domain = Literal["affine", "simplex"]
_ROUNDING = 1e-14  # relative: keeps the system positive definite where residuals are equal or 0
_SIMPLEX_LIMIT = 12  # every face of the simplex is tried: 4095 small systems at most


class Anderson(Mixing):
    """Mix the last points with the weights that make the mix of their residuals smallest.

    α minimises ‖Σ_j α_j r_{t-j}‖² + ridge · tr(G)/history · ‖α‖², G the residuals' Gram matrix
    (Anderson 1965; regularised as by Scieur, d'Aspremont and Bach 2016). Over gradient descent on
    a quadratic it ends one step after as many as there are distinct eigenvalues, given that
    history and no ridge. Where gradients are noisy it fits the noise: use full batches, or blocks
    of an epoch. Where the inner optimiser's steps do not shrink with the gradient (Adam), residuals
    do not tell how far the goal is: mixes on the affine plane leap past it, and the guard does not
    notice. Use blocks of an epoch, the simplex, or a ridge of 0.1 and more there.

    Memory besides the inner optimiser's: 2 copies of the parameters and 2 `history` - 3 in
    `dtype`, for a moment two residuals in float64. Time: `history` inner products a block more
    than `Interpolatron`, the guard's passes, and three waits for the device. The inner products
    run over the tensors as this process sees them: a model sharded over processes is refused where
    torch shows that (DTensor), and must not be given where it does not (FSDP's flat parameters).

    Args:
        inner: any torch optimiser.
        history: number of points mixed.
        every: inner steps in a block.
        domain: where α may lie: on the affine plane Σα = 1, or within the simplex (α ≥ 0 too).
        ridge: the regularisation, relative; the larger, the nearer α is to equal weights.
        beta: how much of a block's residual is taken, in (0, 2].
        growth: the guard, see `Mixing`.
        dtype: of the history, such as `torch.bfloat16`; None for the parameters' own.

    Raises:
        ValueError: where a setting is out of its range, or `inner` has no parameters.
        TypeError: if `inner` is not an optimiser, or its parameters are sharded.
    """

    settings = (*Mixing.settings, "domain", "ridge")

    def __init__(
        self,
        inner: Optimizer,
        history: int = 5,
        every: int = 1,
        *,
        domain: Domain = "affine",
        ridge: float = 1e-3,
        beta: float = 1.0,
        growth: float = 4.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(inner, history, every, beta=beta, growth=growth, dtype=dtype)
        if domain not in ("affine", "simplex"):
            raise ValueError(f"domain must be 'affine' or 'simplex'; got {domain!r}")
        if domain == "simplex" and history > _SIMPLEX_LIMIT:
            raise ValueError(f"the simplex takes history <= {_SIMPLEX_LIMIT}; got {history}")
        if not 0 <= ridge < math.inf:
            raise ValueError(f"ridge must be >= 0 and finite; got {ridge}")
        if any(hasattr(p, "to_local") for p in self._points()):
            raise TypeError("Anderson needs whole parameters; these are sharded (DTensor)")
        self.domain: Domain = domain
        self.ridge = ridge

    @property
    def _measured(self) -> bool:
        return True

    def _tails(self, residual: list[Tensor]) -> Sequence[float]:
        memory, flat = self.memory, self._flat(residual)
        memory.residuals.insert(0, flat)
        memory.gram = _bordered(memory.gram, _products(flat, memory.residuals))
        trace = float(memory.gram.trace())
        if not 0 < trace < math.inf:  # at rest, or lost
            return [0.0] * len(memory.steps)
        gram = memory.gram / trace
        gram.diagonal().mul_(1 + _ROUNDING).add_(self.ridge / len(gram) + _ROUNDING**2)
        return tail_sums(mixing_weights(gram, self.domain).tolist())


def mixing_weights(gram: Tensor, domain: Domain) -> Tensor:
    """Where αᵀ G α is smallest over Σα = 1, on the simplex over α ≥ 0 too: (n, n) -> (n,).

    G must be positive definite. The simplex's minimum is the affine minimum of one of its faces:
    the best of those that are feasible, found by solving all 2ⁿ - 1 at once.
    """
    n = len(gram)
    faces = torch.ones(1, n)  # (faces, n), 1 where a point takes part
    if domain == "simplex":
        faces = torch.arange(1, 2**n)[:, None] >> torch.arange(n) & 1
    faces = faces.to(gram)
    systems = faces[:, :, None] * faces[:, None, :] * gram + torch.diag_embed(1 - faces)
    solved = torch.linalg.solve(systems, faces)
    weights = solved / solved.sum(1, keepdim=True)
    cost = ((weights @ gram) * weights).sum(1)
    if domain == "simplex":
        cost = cost.masked_fill((weights < 0).any(1), math.inf)
    return weights[cost.argmin()]


def _products(flat: list[Tensor], others: list[list[Tensor]]) -> Tensor:
    """⟨flat, o⟩ for every o, in float64 whose products of float32 are exact: (n,) on the CPU."""
    wide = [part.double() for part in flat]
    rows = [[part @ o.double() for part, o in zip(wide, other, strict=True)] for other in others]
    by_device = [torch.stack(column).cpu() for column in zip(*rows, strict=True)]
    return torch.stack(by_device).sum(0)


def _bordered(gram: Tensor | None, row: Tensor) -> Tensor:
    """The Gram matrix with a new first row and column, and without those no longer kept."""
    kept = len(row) - 1
    grown = row.new_empty(kept + 1, kept + 1)
    grown[0], grown[:, 0] = row, row
    if gram is not None:
        grown[1:, 1:] = gram[:kept, :kept]
    return grown
