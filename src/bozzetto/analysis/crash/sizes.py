"""How much of a random error lies beyond a kink, from its moments."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bozzetto.analysis.crash.symbols import Pair


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
