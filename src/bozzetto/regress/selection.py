"""Choosing multilinear ranks: by the gap in the spectra of a fit, or by a forward search."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Literal

import torch

from bozzetto.regress.checks import TooFewObservations
from bozzetto.regress.designs import Dense, inner
from bozzetto.regress.moments import Block, Moments
from bozzetto.regress.refine import Fit, Settings, first_pass, parameters
from bozzetto.regress.sources import Arrays, Source
from bozzetto.tensors import Tucker, check_ranks, unfold

__all__ = ["Criterion", "Fitter", "choose_ranks", "forward_search", "largest_ranks", "ranks_by_gap"]

Ranks = tuple[int, ...]
Criterion = Literal["bic", "cv", "gap"]
Fitter = Callable[[Source, Moments, Ranks], Fit]  # raises TooFewObservations


def choose_ranks(
    criterion: str,
    source: Source,
    moments: Moments,
    fit: Fitter,
    settings: Settings,
    *,
    most: int,
    cv: Any,
) -> Ranks:
    """Ranks up to `most` by the criterion; only those that the observations can determine.

    Raises:
        ValueError: for an unknown criterion, or "cv" where the observations are not in arrays.
        TooFewObservations: if the observations do not even determine ranks of one.
    """
    shape = tuple(moments.cross.shape)
    if criterion == "gap":
        return ranks_by_gap(_largest_fit(source, moments, fit, most))
    if criterion == "bic":
        return forward_search(lambda r: _bic(source, moments, r, fit), shape, most)
    if criterion != "cv":
        raise ValueError(f'ranks are ints or one of "bic", "cv", "gap"; got {criterion!r}')
    if not isinstance(source, Arrays):
        raise ValueError('ranks="cv" needs the observations in arrays; got batches: use "bic"')
    return _by_cross_validation(source, fit, settings, shape, most, cv)


def _largest_fit(source: Source, moments: Moments, fit: Fitter, most: int) -> Tucker:
    """The fit of the largest rank that the observations determine."""
    ranks = largest_ranks(tuple(moments.cross.shape), most)
    try:
        return fit(source, moments, ranks).tucker
    except TooFewObservations:
        if most == 1:
            raise
        return _largest_fit(source, moments, fit, most - 1)


def _bic(source: Source, moments: Moments, ranks: Ranks, fit: Fitter) -> float:
    """Schwarz's (1978) criterion N log(RSS / N) + m log N; N = Σ w numbers observed, m unknowns."""
    found = fit(source, moments, ranks)
    n = moments.weight * moments.mean_y.numel()
    unknowns = parameters(found.step.at.shape, ranks)
    if unknowns >= moments.count * moments.mean_y.numel():
        raise TooFewObservations(
            f'ranks="bic" needs more observations than the {unknowns} unknowns of ranks {ranks}; '
            f"got n_samples={moments.count}"
        )
    floor = 1e-24 * moments.square + 1e-300  # below it rounding decides
    return n * math.log(max(found.residual, floor) / n) + unknowns * math.log(n)


@dataclass
class _Loss:
    """A sum of squared errors."""

    value: float

    def merge(self, other: "_Loss") -> "_Loss":
        self.value += other.value
        return self


def _by_cross_validation(
    source: Arrays, fit: Fitter, settings: Settings, shape: Ranks, most: int, cv: Any
) -> Ranks:
    """The fewest unknowns whose squared error on held-out folds is no worse than the lowest one.

    No worse: by at most one standard error of the mean difference between the two over the folds
    (the rule of Breiman, Friedman, Olshen, Stone 1984, in pairs). The lowest error alone prefers
    ranks that are too large.
    """
    folds = [(kept, held, first_pass(kept, settings)) for kept, held in source.folds(cv)]
    losses: dict[Ranks, torch.Tensor] = {}

    def score(ranks: Ranks) -> float:
        fits = [(held, m, fit(kept, m, ranks).tucker) for kept, held, m in folds]
        each = [held.reduce(partial(_loss, moments=m, tucker=t)).value for held, m, t in fits]
        losses[ranks] = torch.tensor(each, dtype=torch.float64)
        return float(losses[ranks].sum())

    best = forward_search(score, shape, most)
    gaps = {ranks: loss - losses[best] for ranks, loss in losses.items()}
    close = [r for r, gap in gaps.items() if r == best or gap.mean() <= _standard_error(gap)]
    return min(close, key=lambda ranks: parameters(shape, ranks))


def _standard_error(values: torch.Tensor) -> torch.Tensor:
    return values.std() / math.sqrt(len(values)) if len(values) > 1 else values.new_zeros(())


def _loss(block: Block, moments: Moments, tucker: Tucker) -> _Loss:
    constant = moments.mean_y - inner_of_mean(moments, tucker)
    error = block.y - inner(block.x, tucker) - constant
    return _Loss(float((block.weight @ error.reshape(len(error), -1) ** 2).sum()))


def inner_of_mean(moments: Moments, tucker: Tucker) -> torch.Tensor:
    """⟨X̄, A⟩, (q₁, …)."""
    return inner(Dense(moments.mean_x[None]), tucker)[0]


def feasible(shape: Sequence[int], ranks: Sequence[int]) -> bool:
    """Whether a tensor of that shape can have these multilinear ranks."""
    try:
        check_ranks(shape, ranks)
    except ValueError:
        return False
    return True


def largest_ranks(shape: Sequence[int], most: int) -> Ranks:
    """The largest feasible ranks that are at most `most` and at most the modes' sizes."""
    ranks = [min(p, most) for p in shape]
    for k in sorted(range(len(ranks)), key=lambda k: -ranks[k]):  # only the largest can exceed
        ranks[k] = min(ranks[k], math.prod(ranks[:k] + ranks[k + 1 :]))
    return tuple(ranks)


def ranks_by_gap(fitted: Tucker) -> Ranks:
    """In every mode, the number of singular values before the largest ratio of neighbours.

    A fit of ranks (R₁, …) can tell up to R_k − 1; a mode of rank 1 stays. The rank of a mode above
    the product of the others' is lowered to it.
    """
    core = fitted.orthonormal().core
    found = []
    for k, r in enumerate(fitted.ranks):
        values = torch.linalg.svdvals(unfold(core, k))[:r].clamp_min(1e-300)
        found.append(int((values[:-1] / values[1:]).argmax()) + 1 if r > 1 else 1)
    return largest_ranks(found, max(found))


def forward_search(score: Callable[[Ranks], float], shape: Sequence[int], most: int) -> Ranks:
    """Ranks of the lowest score, from all ones, raising any subset of the modes by one at a time.

    Ends when no such step lowers the score. Ranks stay at or below `most`; those that the
    observations do not determine are passed over.

    Raises:
        TooFewObservations: if that is so for ranks of one.
    """
    best = (1,) * len(shape)
    lowest = score(best)

    def attempt(ranks: Ranks) -> float:
        try:
            return score(ranks)
        except TooFewObservations:
            return math.inf

    while True:
        steps = [step for step in product((0, 1), repeat=len(shape)) if any(step)]
        options = [tuple(r + s for r, s in zip(best, step, strict=True)) for step in steps]
        options = [o for o in options if max(o) <= most and feasible(shape, o)]
        scores = {option: attempt(option) for option in options}
        if not scores or min(scores.values()) >= lowest:
            return best
        best = min(scores, key=lambda option: scores[option])
        lowest = scores[best]
