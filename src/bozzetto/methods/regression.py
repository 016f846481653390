"""Tucker-2 factors of a convolution as tensor regression in the objective's metric."""

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from bozzetto.methods.method import Objective
from bozzetto.moments import damped


class Factors(NamedTuple):
    """W ≈ B · core · (A ⊗ I_taps), one of each a group."""

    a: Tensor  # (g, r_in, n)
    core: Tensor  # (g, r_out, r_in·taps)
    b: Tensor  # (g, m, r_out)

    def weight(self) -> Tensor:
        """(g, m, d)."""
        return self.b @ widen(self.core, self.a)

    def balanced(self) -> "Factors":
        """Other factors of the same weight, for training on, as gradients are of like size then.

        A and B with orthogonal directions, those of the core's own modes (HOSVD; De Lathauwer, De
        Moor and Vandewalle 2000), each scaled by the cube root of its singular value.
        """
        (qa, ra), (qb, rb) = torch.linalg.qr(self.a.mT), torch.linalg.qr(self.b)
        core = rb @ widen(self.core, ra.mT)
        u, sizes = _mode(core.unflatten(-1, (ra.shape[-1], -1)).movedim(2, 1).flatten(2))
        core = narrow(core, u.mT / sizes.unsqueeze(-1))
        v, heights = _mode(core)
        core = v.mT @ core / heights.unsqueeze(-1)
        return Factors(u.mT @ qa.mT * sizes.unsqueeze(-1), core, qb @ v * heights.unsqueeze(-2))


def _mode(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Orthogonal directions of a mode (g, r, …) and the cube roots of their singular values."""
    values, vectors = torch.linalg.eigh(rows @ rows.mT)
    return vectors, values.clamp_min(1e-12 * values[..., -1:].clamp_min(1e-30)).pow(1 / 6)


def narrow(x: Tensor, a: Tensor) -> Tensor:
    """X (A ⊗ I)ᵀ: (g, p, n·taps) -> (g, p, r·taps)."""
    return torch.einsum("gpnt,grn->gprt", x.unflatten(-1, (a.shape[-1], -1)), a).flatten(2)


def widen(x: Tensor, a: Tensor) -> Tensor:
    """X (A ⊗ I): (g, p, r·taps) -> (g, p, n·taps)."""
    return torch.einsum("gprt,grn->gpnt", x.unflatten(-1, (a.shape[1], -1)), a).flatten(2)


def leading_inputs(objective: Objective) -> Tensor:
    """Directions of the input mode, whitened by the channels' own moment, best first; (g, n, n)."""
    n = objective.map.weight.shape[1]
    modes = objective.whiten_output(objective.w).unflatten(-1, (n, -1)).movedim(2, 1).flatten(2)
    if objective.moment is None:
        return torch.linalg.eigh(modes @ modes.mT)[1].flip(-1).mT
    taps = objective.map.block[1] // n
    blocks = objective.moment.unflatten(-1, (n, taps)).unflatten(1, (n, taps))
    root = torch.linalg.cholesky(blocks.diagonal(dim1=2, dim2=4).mean(-1))  # (g, n, n)
    modes = root.mT @ modes
    u = torch.linalg.eigh(modes @ modes.mT)[1].flip(-1)
    return torch.linalg.solve_triangular(root, u.mT, upper=False, left=False)


def _seen(objective: Objective, a: Tensor) -> tuple[Tensor, Tensor]:
    """The whitened layer on inputs narrowed by A, (g, m, r·taps), and its whitening's root.

    Both are nested: A's first rows give their first columns.
    """
    c = objective.moment
    if c is None:
        c = torch.eye(objective.map.block[1], dtype=torch.float64).expand(len(a), -1, -1)
    right = narrow(c, a)  # (g, d, r·taps)
    root = torch.linalg.cholesky(damped(narrow(right.mT, a), 1e-12))
    seen = torch.linalg.solve_triangular(root, (objective.w @ right).mT, upper=False).mT
    return objective.whiten_output(seen), root


def regress(objective: Objective, a: Tensor, rank: int) -> Factors:
    """The best B and core for a given A, (g, r_in, n): reduced-rank regression."""
    seen, root = _seen(objective, a)
    u, s, vh = torch.linalg.svd(seen, full_matrices=False)
    core = s[:, :rank].unsqueeze(-1) * vh[:, :rank]
    core = torch.linalg.solve_triangular(root, core, upper=False, left=False)
    return Factors(a, core, objective.unwhiten_output(u[:, :, :rank]))


def regression_errors(
    objective: Objective, ranks: Collection[tuple[int, int]]
) -> dict[tuple[int, int], float]:
    """The objective after `regress` on the leading inputs, at pairs (r_in, r_out).

    One factorisation serves every r_in, and the eigenvalues for each of them every r_out.
    """
    if not ranks:
        return {}
    seen, _ = _seen(objective, leading_inputs(objective)[:, : max(r for r, _ in ranks)])
    taps = objective.map.block[1] // objective.map.weight.shape[1]
    explained = {}
    for r_in in {r for r, _ in ranks}:
        part = seen[:, :, : r_in * taps]
        values = torch.linalg.eigvalsh(part @ part.mT).flip(-1).clamp_min(0)
        explained[r_in] = values.sum(0).cumsum(0).tolist()
    return {(i, o): max(0.0, objective.energy - explained[i][o - 1]) for i, o in ranks}


def improve_inputs(objective: Objective, factors: Factors, steps: int = 12) -> Tensor:
    """A after conjugate gradients on ‖Kᵀ(W − H(A ⊗ I))L‖² with H = B · core fixed; (g, r_in, n)."""
    n, c = objective.map.weight.shape[1], objective.moment
    h = factors.b @ factors.core  # (g, m, r_in·taps)
    gh = h if objective.gradient is None else objective.gradient @ h
    inner = gh.mT @ h  # (g, r·taps, r·taps)

    def project(x: Tensor) -> Tensor:
        """X C summed over equal taps: (g, r·taps, d) -> (g, r, n)."""
        x = x if c is None else x @ c
        blocks = x.unflatten(-1, (n, -1)).unflatten(1, (factors.a.shape[1], -1))
        return blocks.diagonal(dim1=2, dim2=4).sum(-1)

    a = factors.a
    residual = project(gh.mT @ objective.w - widen(inner, a))
    direction, energy = residual, residual.square().sum((1, 2), keepdim=True)
    for _ in range(steps):
        image = project(widen(inner, direction))
        step = energy / (direction * image).sum((1, 2), keepdim=True).clamp_min(1e-300)
        a = a + step * direction
        residual = residual - step * image
        new = residual.square().sum((1, 2), keepdim=True)
        direction, energy = residual + new / energy.clamp_min(1e-300) * direction, new
    return a
