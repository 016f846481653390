"""How large sums of crashes and errors are, and how much of them lies beyond a kink.

By moments, or by the distribution of independent crashes on a grid that can only raise it: every
atom is split between its two grid neighbours so that its mean stays: a mean-preserving
spread, which never lowers the expectation of a convex function.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bozzetto.analysis.crash.symbols import Pair

POINTS = 1 << 9
_ENOUGH = 1 << 9  # so many crashes that a coarse grid tells no more than their moments


def mean_absolute(start: Tensor, gains: Tensor, rates: Tensor, points: int = POINTS) -> Tensor:
    """An upper bound on E|start + Σ b_i g_i| for independent b_i ~ Bernoulli(p_i); (rows,).

    Zero is on the grid if sums may change sign, so that |·| is straight between its points: single
    crashes come out exactly. The grid spans all sums; what splitting pushes off its ends is held,
    the distance added.

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
    chance, *ends = _moved(chance.index_fill(1, at[0, 3:4], 1.0), (start - base) / step, at)
    held = ends[0] + ends[1]
    for gain, rate in zip(gains / step, rates, strict=True):
        moved, below, above = _moved(chance, gain, at)
        chance, held = (1 - rate) * chance + rate * moved, held + rate * (below + above)
    values = base.unsqueeze(1) + (at - 3) * step.unsqueeze(1)
    return (chance * values.abs()).sum(1) + held * step


def _moved(chance: Tensor, by: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A distribution (rows, points) moved by some grid steps, and how far its ends held it."""
    whole, last = by.floor().long().unsqueeze(1), at.shape[1] - 1
    share = (by - by.floor()).unsqueeze(1)
    after, below, above = torch.zeros_like(chance), torch.zeros_like(by), torch.zeros_like(by)
    for part, target in (((1 - share) * chance, at + whole), (share * chance, at + whole + 1)):
        after.scatter_add_(1, target.clamp(0, last), part)
        below = below + (part * (-target).clamp(min=0)).sum(1)
        above = above + (part * (target - last).clamp(min=0)).sum(1)
    return after, below, above


@dataclass(frozen=True)
class Tail:
    """Bounds on E f(S) for a sum S and increasing convex f: a grid, and what lies beyond its top.

    `held` ≥ E(S − top)₊ and `squares` ≥ E(S − top)₊².
    """

    values: Tensor  # (rows, points)
    chance: Tensor  # (rows, points)
    held: Tensor  # (rows,)
    squares: Tensor  # (rows,)

    def above(self, gap: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds on E(S − d)₊ and (E(S − d)₊²)^½, (rows,).

        (x − d)₊² is the sum of itself up to the top with its tangent beyond, and of (x − top)₊².
        """
        over = (self.values - gap.unsqueeze(1)).clamp(min=0)
        first = (self.chance * over).sum(1) + self.held
        beyond = 2 * over[:, -1] * self.held + self.squares
        return first, ((self.chance * over**2).sum(1) + beyond).sqrt()

    def chance_above(self, gap: Tensor) -> Tensor:
        """A bound on P(S > d): E(S − a)₊ / (d − a) for the best a on the grid; (rows,)."""
        above, moment = (
            v.flip(1).cumsum(1).flip(1) for v in (self.chance, self.chance * self.values)
        )
        over = moment - self.values * above + self.held.unsqueeze(1)  # E(S − a)₊
        room = gap.unsqueeze(1) - self.values
        found = torch.where(room > 0, over / room.clamp(min=1e-300), torch.inf)
        return found.amin(1).clamp(max=1)


def tail(gains: Tensor, rates: Tensor, points: int = 64) -> Tail | None:
    """The upper tail of Σ b_i g_i for independent b_i ~ Bernoulli(p_i); None for very many.

    The grid's lower end raises what would fall below it. Falls come first and rises after, so that
    nothing would come back from above the upper end.

    Args:
        gains: g, (n, rows).
        rates: p, (n,).
        points: of the grid; more of them are tighter.
    """
    gains, order = torch.where(gains == 0, torch.inf, gains).sort(0)
    count = int((gains < torch.inf).sum(0).max())
    if not 0 < count <= _ENOUGH:
        return None
    rates = torch.where(gains[:count] < torch.inf, rates[order[:count]], 0.0)  # (n, rows)
    gains = gains[:count].nan_to_num(posinf=0.0)
    mean, variance, fourth = _moments(gains, rates)
    low, high = -_reach(-gains, -mean, variance), _reach(gains, mean, variance)
    step = ((high - low) / (points - 3)).clamp(min=1e-300)
    at = torch.arange(points, device=gains.device).expand(len(step), points)
    zero = (-low / step).ceil().long().unsqueeze(1)
    chance = torch.zeros(at.shape, dtype=gains.dtype, device=gains.device).scatter(1, zero, 1.0)
    raised = chance  # after the falls
    for gain, rate in zip(gains / step, rates, strict=True):
        whole = gain.floor()
        struck, share = rate.unsqueeze(1) * chance, (gain - whole).unsqueeze(1)
        target = at + whole.long().unsqueeze(1)
        chance = chance - struck
        chance.scatter_add_(1, target.clamp(0, points - 1), (1 - share) * struck)
        chance.scatter_add_(1, (target + 1).clamp(0, points - 1), share * struck)
        raised = torch.where((gain < 0).unsqueeze(1), chance, raised)
    values = (at - zero) * step.unsqueeze(1)
    rise = (rates * gains.clamp(min=0)).sum(0)
    held = ((raised - chance) * values).sum(1) + rise  # what the mean lacks
    room = (values[:, -1] - mean).clamp(min=1e-90)
    squares = torch.minimum(variance + (-room).clamp(min=0) ** 2, fourth / (16 * room**2))
    most = gains.clamp(min=0).sum(0)
    squares = torch.where(values[:, -1] < most, squares, 0.0)
    return Tail(values, chance, held.clamp(min=0), squares)


def _moments(gains: Tensor, rates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and fourth central moment of Σ b_i g_i, (rows,)."""
    spread = rates * (1 - rates)
    variance = (spread * gains**2).sum(0)
    fourth = 3 * variance**2 + (spread * (1 - 6 * spread) * gains**4).sum(0)
    return (rates * gains).sum(0), variance, fourth


def _reach(gains: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """How far above 0 a grid must go: to the largest sum, or to what nearly never happens."""
    rare = mean.clamp(min=0) + 6 * variance.sqrt() + 2 * gains.amax(0).clamp(min=0)
    return torch.minimum(gains.clamp(min=0).sum(0), rare)


@dataclass(frozen=True)
class Sizes:
    """Moments of an error about its shift: X (masks) and e (all else), elementwise (b, *s)."""

    variance: Tensor  # E X²
    fourth: Tensor  # E X⁴
    first: Tensor  # ≥ E|X|
    up: Pair  # ≥ E e₊, (E e₊²)^½
    down: Pair  # ≥ E e₋, (E e₋²)^½
    rest: Pair  # ≥ E|e|, (E e²)^½

    @property
    def deviation(self) -> Tensor:
        """(E X²)^½."""
        return self.variance.sqrt()

    def flipped(self, where: Tensor) -> "Sizes":
        """Those of −e where told."""

        def chosen(a: Pair, b: Pair) -> Pair:
            return torch.where(where, b[0], a[0]), torch.where(where, b[1], a[1])

        up, down = chosen(self.up, self.down), chosen(self.down, self.up)
        return replace(self, up=up, down=down)


def curved(s: Sizes, curvature: float, slope: float) -> Pair:
    """|φ(z+X+e) − φ(z) − φ'(X+e)| ≤ ½C(X+e)², or ½CX² + 2K|e|."""
    half, rest = curvature / 2, s.rest
    whole = half * (s.deviation + rest[1]) ** 2
    split = half * s.variance + 2 * slope * rest[0]
    return torch.minimum(whole, split), half * s.fourth.sqrt() + 2 * slope * rest[1]


def stop_loss(s: Sizes, gap: Tensor) -> Pair:
    """Bounds on E(X+e−d)₊ and (E(X+e−d)₊²)^½; e may use half of the gap, E(e−d)₊ ≤ E e²/4d."""
    gap = gap.clamp(min=1e-90)  # no difference but for 0/0
    whole, half = masks_above(s, gap), masks_above(s, gap / 2)
    near = whole[0] + s.up[0]
    far = half[0] + torch.minimum(s.up[0], s.up[1] ** 2 / (2 * gap))
    return torch.minimum(near, far), whole[1] + s.up[1]


def masks_above(s: Sizes, gap: Tensor) -> Pair:
    """Bounds on E(X−d)₊ and (E(X−d)₊²)^½ for E X = 0 and d > 0.

    The first is ≤ ½(√(σ²+d²) − d) (Scarf 1958), ≤ ½E|X|, ≤ (27/256) E X⁴/d³; the second is ≤ σ,
    ≤ (E X⁴)^½/4d.
    """
    scarf = ((s.variance + gap**2).sqrt() - gap) / 2
    first = torch.minimum(torch.minimum(scarf, s.first / 2), 27 / 256 * s.fourth / gap**3)
    return first, torch.minimum(s.deviation, s.fourth.sqrt() / (4 * gap))
