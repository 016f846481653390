"""The distribution of a sum of independent crashes, on a grid that can only raise E|·|."""

import torch
from torch import Tensor

POINTS = 1 << 9


def mean_absolute(start: Tensor, gains: Tensor, rates: Tensor, points: int = POINTS) -> Tensor:
    """An upper bound on E|start + Σ b_i g_i| for independent b_i ~ Bernoulli(p_i); (rows,).

    Every atom is split between its two grid neighbours so that its mean stays: a mean-preserving
    spread, which never lowers the expectation of a convex function. Zero is on the grid if sums may
    change sign, so that |·| is straight between its points: single crashes come out exactly. The
    grid spans all sums; what splitting pushes off its ends is held, the distance added.

    Args:
        start: (rows,).
        gains: g, (n, rows).
        rates: p, (n,).
        points: of the grid; more of them are tighter.
    """
    low = start + gains.clamp(max=0).sum(0)
    high = start + gains.clamp(min=0).sum(0)
    step = ((high - low) / (points - 7)).clamp(min=1e-300)  # (rows,)
    base = torch.where((low <= 0) & (high >= 0), -(-low / step).ceil() * step, low)
    at = torch.arange(points, device=start.device).expand(len(start), points)
    chance = torch.zeros(len(start), points, dtype=start.dtype, device=start.device)
    chance, held = _moved(chance.index_fill(1, at[0, 3:4], 1.0), (start - base) / step, at)
    for gain, rate in zip(gains / step, rates, strict=True):
        moved, more = _moved(chance, gain, at)
        chance, held = (1 - rate) * chance + rate * moved, held + rate * more
    values = base.unsqueeze(1) + (at - 3) * step.unsqueeze(1)
    return (chance * values.abs()).sum(1) + held * step


def _moved(chance: Tensor, by: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """A distribution (rows, points) moved by some grid steps, and how far its ends held it."""
    whole, last = by.floor().long().unsqueeze(1), at.shape[1] - 1
    share = (by - by.floor()).unsqueeze(1)
    after, held = torch.zeros_like(chance), torch.zeros_like(by)
    for part, target in (((1 - share) * chance, at + whole), (share * chance, at + whole + 1)):
        kept = target.clamp(0, last)
        after.scatter_add_(1, kept, part)
        held = held + (part * (target - kept).abs()).sum(1)
    return after, held
