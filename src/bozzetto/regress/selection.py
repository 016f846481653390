"""Choosing multilinear ranks: by the gap in the spectra of a fit, or by a forward search."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch

from bozzetto.regress.designs import Dense, inner
from bozzetto.regress.moments import Block, Moments
from bozzetto.regress.refine import (
    Fit,
    Settings,
    first_pass,
    parameters,
    refine,
    samples_needed,
    start,
)
from bozzetto.regress.sources import Arrays, Source
from bozzetto.tensors import Tucker, check_ranks, unfold

__all__ = ["Criterion", "choose_ranks", "forward_search", "largest_ranks", "ranks_by_gap"]

Ranks = tuple[int, ...]
Criterion = Literal["bic", "cv", "gap"]


def choose_ranks(
    criterion: str,
    source: Source,
    moments: Moments,
    settings: Settings,
    *,
    most: int,
    cv: int,
) -> Ranks:
    """Ranks up to `most` by the criterion; only those that the observations can determine.

    Raises:
        ValueError: for an unknown criterion, or "cv" where the observations are not in arrays.
    """
    shape = tuple(moments.cross.shape)
    if criterion == "gap":
        while most > 1 and not _determined(moments, largest_ranks(shape, most)):
            most -= 1
        return ranks_by_gap(_fit(source, moments, largest_ranks(shape, most), settings).tucker)
    if criterion == "bic":
        return forward_search(lambda r: _bic(source, moments, r, settings), shape, most)
    if criterion != "cv":
        raise ValueError(f'ranks are ints or one of "bic", "cv", "gap"; got {criterion!r}')
    if not isinstance(source, Arrays):
        raise ValueError('ranks="cv" needs the observations in arrays; got batches: use "bic"')
    return forward_search(_held_out(source, settings, cv), shape, most)


def _fit(source: Source, moments: Moments, ranks: Ranks, settings: Settings) -> Fit:
    return refine(source, moments.square, start(moments, ranks, settings.shrinkage), settings)


def _determined(moments: Moments, ranks: Ranks) -> bool:
    shape, order = tuple(moments.cross.shape), moments.mean_x.ndim
    return moments.count >= samples_needed(shape, order, ranks)


def _bic(source: Source, moments: Moments, ranks: Ranks, settings: Settings) -> float:
    """Schwarz's (1978) criterion N log(RSS / N) + m log N; N = Σ w numbers observed, m unknowns."""
    if not _determined(moments, ranks):
        return math.inf
    n = moments.weight * moments.mean_y.numel()
    residual = _fit(source, moments, ranks, settings).residual
    unknowns = parameters(moments.cross.shape, ranks)
    floor = 1e-24 * moments.square + 1e-300  # below it rounding decides
    return n * math.log(max(residual, floor) / n) + unknowns * math.log(n)


@dataclass
class _Loss:
    """A sum of squared errors."""

    value: float

    def merge(self, other: "_Loss") -> "_Loss":
        self.value += other.value
        return self


def _held_out(source: Arrays, settings: Settings, cv: int) -> Callable[[Ranks], float]:
    """The squared error on held-out folds, as a function of the ranks."""
    folds = [source.without(fold, cv) for fold in range(cv)]
    moments = [first_pass(kept, settings) for kept, _ in folds]

    def score(ranks: Ranks) -> float:
        if not all(_determined(m, ranks) for m in moments):
            return math.inf
        total = 0.0
        for (kept, held), m in zip(folds, moments, strict=True):
            tucker = _fit(kept, m, ranks, settings).tucker
            total += held.reduce(lambda block, m=m, t=tucker: _loss(block, m, t)).value
        return total

    return score


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

    Ends when no such step lowers the score. Ranks stay at or below `most`.
    """
    best = (1,) * len(shape)
    lowest = score(best)
    while True:
        steps = [step for step in product((0, 1), repeat=len(shape)) if any(step)]
        options = [tuple(r + s for r, s in zip(best, step, strict=True)) for step in steps]
        options = [o for o in options if max(o) <= most and feasible(shape, o)]
        scores = {option: score(option) for option in options}
        if not scores or min(scores.values()) >= lowest:
            return best
        best = min(scores, key=lambda option: scores[option])
        lowest = scores[best]
