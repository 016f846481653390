"""Second moments, held whole or, where they are too wide for that, as a sketch and a diagonal."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from bozzetto.sketch import Fold

__all__ = [
    "RANK",
    "WIDE",
    "Diagonal",
    "DiagonalPlusLowRank",
    "Full",
    "Metric",
    "Products",
    "SketchedMoment",
    "WideProducts",
    "damped",
    "metric_of",
]

WIDE = 16_384  # beyond: a whole moment would take over 2 GiB
ROUNDING = 1e-10  # of moments, which are sums of products of centred rows
SINGLE = 1e-6  # of a channel's own value: what products of single precision may be off
OUTLIER = 1e4  # of the median: a channel of a hundred times the others' size
RANK = 1_024  # rows of the sketch of a wider one


@dataclass(frozen=True)
class SketchedMoment:
    """What is kept of a moment C too wide to hold, gathered in one pass; float64.

    Attributes:
        diagonal: of C, (g, n).
        product: C Uᵀ, (g, n, s), U: (s, n) the fold sketch of seed 0.
    """

    diagonal: Tensor
    product: Tensor

    @classmethod
    def of(cls, rows: Tensor, rank: int = RANK) -> "SketchedMoment":
        """The sum Σ x xᵀ over rows (g, b, n)."""
        short = _test_matrix(rows.shape[-1], rank).to(rows.device).down(rows)  # (g, b, s)
        return cls(rows.double().square().sum(1), (rows.mT @ short).double())

    def __add__(self, other: "SketchedMoment") -> "SketchedMoment":
        """The sum of two, as of the rows of both."""
        return SketchedMoment(self.diagonal + other.diagonal, self.product + other.product)

    def __truediv__(self, count: float) -> "SketchedMoment":
        """Sums to means."""
        return SketchedMoment(self.diagonal / count, self.product / count)

    def cpu(self) -> "SketchedMoment":
        """The same on the CPU."""
        return SketchedMoment(self.diagonal.cpu(), self.product.cpu())

    def crashed(self, p: float) -> "SketchedMoment":
        """That of inputs of which each is 0 with probability p: (1−p)² C + p(1−p) diag C."""
        short = _test_matrix(*self.product.shape[-2:]).dense().T.to(self.product)  # (n, s)
        product = (1 - p) ** 2 * self.product + p * (1 - p) * self.diagonal.unsqueeze(-1) * short
        return SketchedMoment((1 - p) * self.diagonal, product)

    def centred(self, mean: Tensor) -> "SketchedMoment":
        """That of x − μ, for μ: (g, n)."""
        short = _test_matrix(mean.shape[-1], self.product.shape[-1]).down(mean)  # (g, s)
        product = self.product - mean.unsqueeze(-1) * short.unsqueeze(-2)
        return SketchedMoment((self.diagonal - mean.square()).clamp_min(0), product)

    def approximate(self) -> tuple[Tensor, Tensor]:
        """Diagonal D: (g, n) and factor F: (g, n, r) of C ≈ D + F Fᵀ.

        F Fᵀ = C Uᵀ (U C Uᵀ)⁺ U C (Nyström; Halko, Martinsson and Tropp 2011, §5.4); D is what the
        diagonal has beyond it.
        """
        n, rank = self.product.shape[-2:]
        core = _test_matrix(n, rank).down(self.product, dim=-2)  # (g, s, s)
        values, vectors = torch.linalg.eigh((core + core.mT) / 2)
        floor = values[..., -1:].clamp_min(1e-300) * rank * torch.finfo(core.dtype).eps
        inverse = torch.where(values > floor, values.clamp_min(1e-300).rsqrt(), 0.0)
        factor = self.product @ (vectors * inverse.unsqueeze(-2))
        return (self.diagonal - factor.square().sum(-1)).clamp_min(0), factor


def _test_matrix(n: int, rank: int) -> Fold:
    return Fold(n, rank, seed=0)


class Products:
    """Means of x yᵀ, x and y over rows that arrive in parts, in one pass.

    Products are taken of rows less the mean of the first part, so that single precision loses
    nothing where the mean is large beside the spread; sums are float64.
    """

    def __init__(self) -> None:
        self.count = 0
        self._shift = self._total = self._x = self._y = torch.zeros(())

    def add(self, x: Tensor, y: Tensor) -> None:
        """Rows of the same positions, each (g, b, n); the same tensor twice for a moment."""
        if not self.count:
            self._shift = y.mean(1, keepdim=True)
        same, x = x is y, x - self._shift
        y = x if same else y - self._shift
        part = x.mT @ y
        self._total = self._total.add_(part) if self.count else part.double()
        self._x, self._y = self._x + x.sum(1).double(), self._y + y.sum(1).double()
        self.count += x.shape[1]

    def means(self) -> tuple[Tensor, Tensor, Tensor]:
        """E[x yᵀ]: (g, n, n), E[x] and E[y]: (g, n); float64 on the CPU."""
        s = self._shift.double().cpu().squeeze(1)
        total, x, y = (part.cpu() / self.count for part in (self._total, self._x, self._y))
        total.addcmul_(x.unsqueeze(-1), s.unsqueeze(-2))
        return total.addcmul_(s.unsqueeze(-1), (y + s).unsqueeze(-2)), x + s, y + s


class WideProducts:
    """`Products` of rows with themselves that are too wide for a whole moment."""

    def __init__(self) -> None:
        self.count = 0
        self._total: SketchedMoment | None = None
        self._x = torch.zeros(())

    def add(self, x: Tensor, y: Tensor) -> None:
        """Rows (g, b, n), twice the same."""
        assert x is y
        part = SketchedMoment.of(x)
        self._total = part if self._total is None else self._total + part
        self._x, self.count = self._x + x.sum(1).double(), self.count + x.shape[1]

    def means(self) -> tuple[SketchedMoment, Tensor, Tensor]:
        """What is kept of E[x xᵀ], E[x] twice."""
        assert self._total is not None
        mean = self._x.cpu() / self.count
        return (self._total / self.count).cpu(), mean, mean


class Metric(ABC):
    """A symmetric positive definite C = L Lᵀ in which the rows of a matrix are measured."""

    @abstractmethod
    def times(self, a: Tensor) -> Tensor:
        """A C for A: (g, r, n)."""

    @abstractmethod
    def whiten(self, a: Tensor) -> Tensor:
        """A L."""

    @abstractmethod
    def unwhiten(self, a: Tensor) -> Tensor:
        """A L⁻¹."""


class Full(Metric):
    """C, (g, n, n); L its Cholesky factor.

    Where rounding left it indefinite, as it does channels of very mixed scales, `SINGLE` of its own
    value is added to every channel.
    """

    def __init__(self, c: Tensor) -> None:
        root, failed = torch.linalg.cholesky_ex(c)
        if failed.any():
            c = c + torch.diag_embed(SINGLE * c.diagonal(dim1=-2, dim2=-1))
            root = torch.linalg.cholesky(c)
        self.c, self.root = c, root

    def times(self, a: Tensor) -> Tensor:
        """A C."""
        return a @ self.c

    def whiten(self, a: Tensor) -> Tensor:
        """A L."""
        return a @ self.root

    def unwhiten(self, a: Tensor) -> Tensor:
        """A L⁻¹."""
        return torch.linalg.solve_triangular(self.root, a, upper=False, left=False)


class Diagonal(Metric):
    """C diagonal, (n,)."""

    def __init__(self, c: Tensor) -> None:
        self.c, self.root = c, c.sqrt()

    def times(self, a: Tensor) -> Tensor:
        """A C."""
        return a * self.c

    def whiten(self, a: Tensor) -> Tensor:
        """A L."""
        return a * self.root

    def unwhiten(self, a: Tensor) -> Tensor:
        """A L⁻¹."""
        return a / self.root


class DiagonalPlusLowRank(Metric):
    """C = D + F Fᵀ with L = D^½ (I + Q (Σ − I) Qᵀ), D^-½ F = Q S Vᵀ and Σ² = I + S²."""

    def __init__(self, diagonal: Tensor, factor: Tensor) -> None:
        self.diagonal, self.factor = diagonal, factor
        self.root = diagonal.sqrt().unsqueeze(-2)  # (g, 1, n)
        self.q, s, _ = torch.linalg.svd(factor / self.root.mT, full_matrices=False)
        self.sigma = (1 + s.square()).sqrt().unsqueeze(-2)  # (g, 1, r)

    def times(self, a: Tensor) -> Tensor:
        """A C."""
        return a * self.diagonal.unsqueeze(-2) + (a @ self.factor) @ self.factor.mT

    def whiten(self, a: Tensor) -> Tensor:
        """A L."""
        a = a * self.root
        return a + ((a @ self.q) * (self.sigma - 1)) @ self.q.mT

    def unwhiten(self, a: Tensor) -> Tensor:
        """A L⁻¹."""
        a = a + ((a @ self.q) * (1 / self.sigma - 1)) @ self.q.mT
        return a / self.root


def metric_of(moment: Tensor | SketchedMoment, damping: float, raw: Tensor | None = None) -> Metric:
    """A moment, `damped`, as a metric."""
    if isinstance(moment, SketchedMoment):
        diagonal, factor = moment.approximate()
        return DiagonalPlusLowRank(diagonal + damping * _typical(moment.diagonal) + 1e-30, factor)
    if moment.ndim == 1:
        return Diagonal(damped(moment, damping))
    return Full(damped(moment, damping, raw))


def damped(a: Tensor, fraction: float, raw: Tensor | None = None) -> Tensor:
    """A moment, full or diagonal, plus that fraction of its mean eigenvalue: positive definite.

    In the mean of a full one no diagonal value counts for more than `OUTLIER` times their median,
    so that one channel that is a thousandfold the others does not drown them. Where it is the small
    difference of a larger matrix `raw` and something else, as a covariance of nearly constant
    inputs is, the rounding of that difference is added too.
    """
    if a.ndim == 1:
        return a + (fraction * a.mean() + 1e-30)
    shift = fraction * _typical(a.diagonal(dim1=-2, dim2=-1)) + 1e-30
    if raw is not None:
        shift = shift + ROUNDING * raw.diagonal(dim1=-2, dim2=-1)
    return a + torch.diag_embed(shift.expand(a.shape[:-1]))


def _typical(diagonal: Tensor) -> Tensor:
    """The mean of a diagonal, outliers capped: (g, n) -> (g, 1).

    Constant channels, of which there is only rounding, say nothing of what is an outlier.
    """
    dust = ROUNDING**2 * diagonal.amax(-1, keepdim=True)
    median = diagonal.masked_fill(diagonal <= dust, torch.nan).nanmedian(-1, keepdim=True).values
    capped = diagonal.minimum(OUTLIER * median.nan_to_num(torch.inf))
    return capped.mean(-1, keepdim=True).clamp_min(0)
