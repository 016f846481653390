"""ISLET: directions from the covariance tensor, then sketched least squares until it is still."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bozzetto.linalg import roots_psd
from bozzetto.regress.directions import Directions
from bozzetto.regress.moments import Moments, measure
from bozzetto.regress.sketched import Sketched, pack, sketch_block, unpack
from bozzetto.regress.sources import Source
from bozzetto.tensors import Tucker, hooi, multi_product

__all__ = ["Fit", "Settings", "first_pass", "parameters", "refine", "samples_needed", "start"]


@dataclass(frozen=True)
class Settings:
    """How to fit.

    Attributes:
        n_iter: refinements after the first sketched regression.
        tol: stop when a refinement changes, or the next one would, the objective by less than this
            fraction.
        ridge: α in Σ w ‖y − ⟨X, A⟩‖² + α ‖A‖².
        shrinkage: s in (1 − s) S_k + s I, by which the modes are whitened for the start.
        intercept: whether covariates and responses are centred.
    """

    n_iter: int
    tol: float
    ridge: float
    shrinkage: float
    intercept: bool


@dataclass(frozen=True)
class Step:
    """The problem sketched at a point: its sums, the point's coordinates and its objective.

    `square` is Σ w ‖y − ȳ‖².
    """

    at: Tucker
    directions: Directions
    sketched: Sketched
    square: float
    theta: Tensor  # (m, 1)
    objective: float

    @classmethod
    def measure(cls, source: Source, at: Tucker, square: float, settings: Settings) -> "Step":
        """One reading of the source."""
        directions, core = Directions.at(at)
        sketched = source.reduce(partial(sketch_block, directions=directions))
        if not settings.intercept:
            sketched = sketched.about_zero()
        pairs = zip(directions.complements, directions.ranks, strict=True)
        arms = [core.new_zeros(c.shape[1], r) for c, r in pairs]
        theta = pack(core, arms[: len(arms) - len(sketched.outside)])
        explained = sketched.main.explained(theta)
        objective = square - explained + settings.ridge * float((theta**2).sum())
        return cls(at, directions, sketched, square, theta, objective)

    def solve(self, ridge: float, damping: float) -> "Solution":
        """The least-squares point of the tangent space, brought back to the ranks."""
        main, outside = self.sketched.main, self.sketched.outside
        theta = main.solve(ridge, damping, around=self.theta)
        arms = [part.solve(ridge, damping) for part in outside]
        explained = sum(p.explained(arm) for p, arm in zip(outside, arms, strict=True))
        residual = self.square - main.explained(theta) - explained
        point = unpack(theta, arms, self.directions)
        objective = residual + ridge * point.squared_norm()
        return Solution(self.directions.retract(point), residual, objective)


@dataclass(frozen=True)
class Solution:
    """A tensor of low rank, and what its tangent point reaches in the sketched problem.

    Attributes:
        tucker: the tangent point brought back to the ranks.
        residual: Σ w ‖y − ŷ‖² of the tangent point.
        objective: that and α ‖A‖² of the tangent point.
    """

    tucker: Tucker
    residual: float
    objective: float


@dataclass(frozen=True)
class Fit:
    """The estimate.

    Attributes:
        tucker: its low-rank form.
        step: the last sketched problem, solved by it.
        history: the objective at the start and after every refinement that lowered it.
        residual: Σ w ‖y − ŷ‖² of the last tangent point.
    """

    tucker: Tucker
    step: Step
    history: tuple[float, ...]
    residual: float


def parameters(shape: Sequence[int], ranks: Sequence[int]) -> int:
    """Dimension of the tensors of that shape and multilinear ranks: Π r_k + Σ (p_k − r_k) r_k."""
    return math.prod(ranks) + sum((p - r) * r for p, r in zip(shape, ranks, strict=True))


def samples_needed(shape: Sequence[int], order: int, ranks: Sequence[int]) -> int:
    """Observations at which the sketched regressions are determined, intercepts included."""
    arms = sum((p - r) * r for p, r in zip(shape[:order], ranks[:order], strict=True))
    main = -(-(math.prod(ranks) + arms) // math.prod(ranks[order:]))
    return max(main, *ranks[order:], 1) + 1


def first_pass(source: Source, settings: Settings) -> Moments:
    """Means, covariance tensor and second moments of the modes."""
    moments = source.reduce(measure)
    return moments if settings.intercept else moments.about_zero()


def start(moments: Moments, ranks: Sequence[int], shrinkage: float) -> Tucker:
    """The low-rank tensor nearest to the covariance tensor whitened along its modes.

    If the covariates' covariance is ⊗ S_k the covariance tensor is A ×_k S_k: A is S_k^-½ applied
    to it twice. HOOI comes between the two, where the noise is white.
    """
    whiten: list[Tensor] = []
    for second in moments.modes:
        unit = second * (len(second) / second.trace().clamp_min(1e-300))
        whiten.append(roots_psd((1 - shrinkage) * unit + shrinkage * torch.eye(len(unit)))[1])
    nearest = hooi(multi_product(moments.cross, whiten), ranks)
    factors = list(nearest.factors)
    for k, matrix in enumerate(whiten):
        factors[k] = matrix @ factors[k]
    return Tucker(nearest.core / (moments.weight * moments.variance()), tuple(factors))


def refine(source: Source, square: float, at: Tucker, settings: Settings) -> Fit:
    """Gauss-Newton on the tensors of `at`'s ranks, each step one reading of the source.

    `square` is Σ w ‖y − ȳ‖². Ends when the next step promises to lower the objective by less than
    the tolerance, which its tangent point tells without a reading, or when the last one changed it
    by less. After a step that raised the objective the one before is taken again, damped (Levenberg
    1944, Marquardt 1963). The last step is not checked: that takes a reading.
    """
    base = Step.measure(source, at, square, settings)
    history, damping, gain = [base.objective], 0.0, math.inf
    best = base.solve(settings.ridge, damping)
    for _ in range(settings.n_iter):
        promised = math.inf if damping else history[-1] - best.objective
        if min(abs(gain), promised) <= settings.tol * history[-1] + 1e-14 * square:
            break
        step = Step.measure(source, best.tucker, square, settings)
        gain = history[-1] - step.objective
        if gain >= 0:
            base, damping = step, damping / 4
            history.append(step.objective)
        else:
            damping = max(4 * damping, 0.1 * base.sketched.main.scale())
        best = base.solve(settings.ridge, damping)
    return Fit(best.tucker, base, tuple(history), best.residual)
