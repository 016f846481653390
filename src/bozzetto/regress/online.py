"""Observations that are seen once: old sums are carried over to new directions."""

from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bozzetto.regress.designs import Dense
from bozzetto.regress.directions import Directions
from bozzetto.regress.moments import Moments
from bozzetto.regress.refine import Fit, Settings, Step, first_pass, start
from bozzetto.regress.sketched import LeastSquares, Sketched, covariates, sketch_block, unpack
from bozzetto.regress.sources import Source
from bozzetto.tensors import Tucker, fold

__all__ = ["Online", "overlap"]


@dataclass
class Online:
    """What is kept of observations that were seen once.

    Attributes:
        moments: of all observations.
        directions: where sums are taken, until the observations have doubled.
        since: observations when the directions were set.
        recent: the sums of those that came after that.
        carried: the sums of the stage before, brought to these directions. What this neglects is
            the part of those covariates outside the former tangent space, and with it a bias that
            goes with the former directions' error; therefore older stages are dropped, at most a
            quarter of all observations.
    """

    moments: Moments
    directions: Directions
    since: int
    recent: LeastSquares | None
    carried: LeastSquares | None

    def take(self, source: Source, at: Tucker, settings: Settings) -> Fit:
        """The estimate with the source's observations; `at` is the one without them."""
        if self.moments.count >= 2 * self.since:
            self._turn_to(self._better(source, at, settings))
        self.moments.merge(first_pass(source, settings))
        sums = source.reduce(partial(sketch_block, directions=self.directions)).main
        sums = sums if settings.intercept else sums.about_zero()
        self.recent = sums if self.recent is None else self.recent.merge(sums)
        both = self.recent if self.carried is None else deepcopy(self.carried).merge(self.recent)
        theta = both.solve(settings.ridge, 0.0)
        residual = self.moments.square - both.explained(theta)
        objective = residual + settings.ridge * float((theta**2).sum())
        square = self.moments.square
        step = Step(at, self.directions, Sketched(both, []), square, theta, objective)
        tucker = self.directions.retract(unpack(theta, [], self.directions))
        return Fit(tucker, step, (objective,), residual)

    def _better(self, source: Source, at: Tucker, settings: Settings) -> Directions:
        """The estimate's directions or the covariance tensor's: which explain the source better.

        The latter rescue an estimate whose first observations were too few to see a direction.
        """
        anew = start(self.moments, at.ranks, settings.shrinkage)
        options = [Directions.at(tucker)[0] for tucker in (at, anew)]
        return max(options, key=lambda d: _explained(source, d, settings))

    def _turn_to(self, directions: Directions) -> None:
        if self.recent is not None:
            self.carried = self.recent.turned(overlap(directions, self.directions))
        self.directions, self.since, self.recent = directions, self.moments.count, None


def overlap(new: Directions, old: Directions) -> Tensor:
    """Inner products of the tangent spaces' bases, (m_new, m_old): identity if they are the same.

    A new basis tensor lives in few coordinates (the new spans, and one complement), so that it is
    sketched at the old directions without being formed.
    """
    order, ranks = len(new.spans), new.ranks
    core = torch.eye(int(torch.tensor(ranks).prod()), dtype=torch.float64).unflatten(1, ranks)
    blocks = [_seen(core, new.spans, old)]
    for k in range(order):
        frame = [*new.spans[:k], new.complements[k], *new.spans[k + 1 :]]
        size, r = new.complements[k].shape[1], ranks[k]
        shape = [size if j == k else ranks[j] for j in range(order)]
        one = torch.eye(size, dtype=torch.float64)
        # Arm (a, i) is e_a along mode k and row i of V_kᵀ along the others.
        arms = [
            fold(torch.outer(one[a], new.rows[k][:, i]), k, shape)
            for a in range(size)
            for i in range(r)
        ]
        blocks.append(_seen(torch.stack(arms), frame, old) if arms else blocks[0][:0])
    return torch.cat(blocks)


def _seen(elements: Tensor, frame: list[Tensor] | tuple[Tensor, ...], old: Directions) -> Tensor:
    """Tensors (b, …) in the coordinates of `frame`, sketched at the old directions: (b, m_old)."""
    spans = tuple(f.T @ u for f, u in zip(frame, old.spans, strict=True))
    complements = tuple(f.T @ c for f, c in zip(frame, old.complements, strict=True))
    return covariates(Dense(elements), Directions(spans, complements, old.rows))[0][:, 0]


def _explained(source: Source, directions: Directions, settings: Settings) -> float:
    """By how much least squares at the directions lowers the source's sum of squares.

    Damped by the covariates' mean square, so that a source with few observations has its say.
    """
    sums = source.reduce(partial(sketch_block, directions=directions)).main
    return sums.explained(sums.solve(settings.ridge, sums.scale()))
