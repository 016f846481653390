"""Group lasso over rows, from sums alone, and the choice of rows along its path."""

import math

import torch
from torch import Tensor

from bozzetto.linalg import solve_psd
from bozzetto.regress.sketched import LeastSquares

__all__ = ["choose_rows", "group_lasso"]

PATH = 30  # penalties from the largest useful one down to its hundredth


def group_lasso(sums: LeastSquares, groups: int, penalty: float, theta: Tensor) -> Tensor:
    """Argmin of ½‖y − xθ‖² + penalty Σ_i ‖θ_i‖ over rows θ_i of θ: (p, r), from the given θ.

    Accelerated proximal gradient (Beck, Teboulle 2009) until θ moves by less than 10⁻⁵ of its norm.
    """
    moment = sums.moment.reshape(groups, -1)
    rate = 1 / torch.linalg.eigvalsh(sums.gram)[-1].clamp_min(1e-300)
    ahead, pace = theta, 1.0
    for _ in range(500):
        slope = (sums.gram @ ahead.reshape(-1, 1)).reshape(theta.shape) - moment
        new = ahead - rate * slope
        norm = new.norm(dim=1, keepdim=True)
        new = new * (1 - rate * penalty / norm.clamp_min(1e-300)).clamp_min(0)
        faster = (1 + math.sqrt(1 + 4 * pace**2)) / 2
        ahead, pace = new + ((pace - 1) / faster) * (new - theta), faster
        moved, theta = (new - theta).norm(), new
        if moved <= 1e-5 * theta.norm():
            break
    return theta


def choose_rows(sums: LeastSquares, groups: int, square: float, least: int) -> Tensor:
    """The rows in use, bool (p,): of those along the path, least squares of the lowest EBIC.

    The extended criterion N log(RSS / N) + k log N + 2 (rows) log p (Chen, Chen 2008) with N = Σ w,
    k unknowns in use and `square` = Σ w (y − ȳ)². At least the `least` rows that enter first.
    """
    each = len(sums.gram) // groups
    theta = torch.zeros(groups, each, dtype=torch.float64)
    top = float(sums.moment.reshape(groups, -1).norm(dim=1).max())
    best, lowest, seen = torch.ones(groups, dtype=torch.bool), math.inf, set[bytes]()
    for step in range(1, PATH + 1):
        theta = group_lasso(sums, groups, top * 0.01 ** (step / PATH), theta)
        rows = theta.norm(dim=1) > 0
        count, name = int(rows.sum()), rows.numpy().tobytes()
        if count < least or name in seen:
            continue
        if 3 * count * each > sums.weight:  # a fit that good would say nothing
            break
        seen.add(name)
        criterion = _criterion(sums, rows, each, square)
        if criterion < lowest:
            best, lowest = rows, criterion
    return best


def _criterion(sums: LeastSquares, rows: Tensor, each: int, square: float) -> float:
    index = rows.repeat_interleave(each).nonzero().squeeze(1)
    moment = sums.moment[index]
    theta = solve_psd(sums.gram[index][:, index], moment)
    residual = max(square - float((moment * theta).sum()), 1e-9 * square + 1e-300)
    n = sums.weight
    return (
        n * math.log(residual / n)
        + len(index) * math.log(n)
        + 2 * int(rows.sum()) * math.log(len(rows))
    )
