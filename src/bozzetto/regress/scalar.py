"""Regression of a scalar on tensors: `ISLETRegressor`."""

from typing import Any, Self

import numpy as np
import torch

from bozzetto.regress.checks import check_data
from bozzetto.regress.model import TensorRegressor
from bozzetto.regress.online import Online
from bozzetto.regress.refine import first_pass
from bozzetto.regress.sketched import covariates
from bozzetto.regress.sources import Arrays, blocks_of

__all__ = ["ISLETRegressor"]


class ISLETRegressor(TensorRegressor):
    """Regression of a scalar on tensors, y = c + ⟨X, A⟩ + ε, with A of low multilinear rank.

    Importance-sketched low-rank estimation (Zhang, Luo, Raskutti, Yuan, SIAM J. Math. Data Sci.
    2020): the covariance tensor of y and X gives directions, a least-squares problem with as many
    unknowns as A has degrees of freedom gives A. Repeating the second half at the directions of
    the estimate is a Gauss-Newton step on the manifold of such tensors; one or two reach the error
    of least squares that knows the directions.

    Parameters:
        ranks: one rank for all modes, one a mode, or how to choose them: "gap" (in the spectra of a
            fit of rank `max_rank`), "bic", or "cv" (held-out squared error).
        shape: the tensors' shape (p₁, …, p_d), when X comes as a matrix of flattened tensors.
        n_iter: most refinements after the first sketched regression.
        tol: stop when a refinement changes, or the next one would, the objective by less than this
            fraction.
        alpha: ridge, α ‖A‖², for short samples.
        shrinkage: between 0 (whiten every mode of the covariates for the first directions) and 1
            (take their entries for uncorrelated and of one variance).
        fit_intercept: whether to estimate c.
        max_rank: the largest rank that is tried when ranks are chosen.
        cv: folds when ranks are chosen by "cv", by scikit-learn's conventions: their number, a
            splitter, or pairs of indices. A number with `groups` in `fit` means whole groups.
        warm_start: start at the last estimate, when it has the same shape and ranks.

    Attributes:
        coef_: A, (p₁, …, p_d).
        core_: (r₁, …, r_d); A = core_ ×₁ factors_[0] … ×_d factors_[d-1].
        factors_: arrays (p_k, r_k).
        intercept_: c.
        ranks_: the ranks.
        shape_: (p₁, …, p_d).
        n_iter_: refinements that lowered the objective.
        objectives_: Σ w (y − ŷ)² + α ‖A‖² at the start and after each of them.
    """

    _scalar = True

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Take more observations into the estimate and forget them.

        The first call, and the first one after `fit`, estimates anew and needs as many observations
        as `fit` does. Later ones add to the sums of a least-squares problem at fixed directions,
        that are set to the estimate's whenever the observations have doubled. The error is some
        tens of percent above that of `fit` on all of them. Memory: two tensors of A's shape and
        (unknowns)².

        Raises:
            ValueError: as in `fit`, and for covariates of another shape than before.
        """
        settings = self._settings()
        first = not hasattr(self, "_online")
        x, y, weight = check_data(self, X, y, sample_weight, shape=self.shape, reset=first)
        source = Arrays(x, y, weight)
        if not first:
            fit = self._online.take(source, self._tucker(), settings)
            return self._keep(fit, self._online.moments)
        moments = first_pass(source, settings)
        fit = self._estimate(source, moments, settings)
        sums, directions = fit.step.sketched.main, fit.step.directions
        self._online = Online(moments, directions, moments.count, sums, None)
        return self._keep(fit, moments)

    def standard_errors(self, X: Any) -> np.ndarray:
        """Standard errors of ⟨X, Â⟩: (n,). X = a tensor with a single 1 gives those of an entry.

        σ √(φᵀ G⁻¹ φ) with φ the covariates and G the Gram matrix of the last sketched problem, the
        first-order theory of least squares on a manifold whose ranks are right; σ² is the residual
        by its degrees of freedom.

        Raises:
            ValueError: after a fit with alpha > 0 (the bias is unknown) or with no degree of
                freedom left.
        """
        x = self._covariates(X)
        gram, (residual, count) = self._step.sketched.main.gram, self._noise
        free = count - len(gram) - self.fit_intercept
        if self.alpha > 0 or free < 1:
            raise ValueError(
                "standard errors need alpha = 0 and more observations than unknowns; "
                f"got alpha={self.alpha}, {count} observations and {len(gram)} unknowns"
            )
        inverse = torch.linalg.pinv(gram, hermitian=True)
        blocks = blocks_of(x, np.empty(len(x)), np.ones(len(x)))
        parts = [covariates(block.x, self._step.directions)[0][:, 0] for block in blocks]
        variances = [((phi @ inverse) * phi).sum(1) for phi in parts]
        return (torch.cat(variances) * (residual / free)).clamp_min(0).sqrt().numpy()
