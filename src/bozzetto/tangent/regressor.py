"""Kernel regression with the limiting kernels of dense networks, as scikit-learn estimators.

The ridge is chosen by leave-one-out, in closed form from one eigendecomposition. This module alone
of the package's tangent part imports scikit-learn.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from bozzetto.tangent.activation import Activation, Erf, Gelu, relu
from bozzetto.tangent.fast import Layer, dense_kernels

ACTIVATIONS: dict[str, Activation] = {"relu": relu, "erf": Erf(), "gelu": Gelu()}
RIDGES = tuple(10.0**e for e in range(-8, 3))


class _KernelRidge(BaseEstimator):
    """What both estimators share: the kernel, and the dual weights for a matrix of targets."""

    def __init__(
        self,
        depth: int = 2,
        *,
        activation: Literal["relu", "erf", "gelu"] = "relu",
        kernel: Literal["ntk", "nngp"] = "ntk",
        variance: float = 2.0,
        bias: float = 0.1,
        ridges: Sequence[float] = RIDGES,
    ) -> None:
        self.depth = depth
        self.activation = activation
        self.kernel = kernel
        self.variance = variance
        self.bias = bias
        self.ridges = ridges

    def _kernel(self, x: np.ndarray, x2: np.ndarray | None = None) -> np.ndarray:
        layers = [Layer(ACTIVATIONS[self.activation], self.variance, self.bias)] * self.depth
        other = None if x2 is None else torch.tensor(x2)
        kernels = dense_kernels(torch.tensor(x), layers, other)
        return getattr(kernels, self.kernel).numpy()

    def _check(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is one of {sorted(ACTIVATIONS)}; got {self.activation!r}")
        if self.kernel not in ("ntk", "nngp"):
            raise ValueError(f"kernel is 'ntk' or 'nngp'; got {self.kernel!r}")
        if self.depth < 1:
            raise ValueError(f"depth must be at least 1; got {self.depth}")
        if not (self.variance > 0 and self.bias >= 0):
            raise ValueError(
                f"variance must be > 0 and bias >= 0; got {self.variance} and {self.bias}"
            )
        if not len(self.ridges) or min(self.ridges) <= 0:
            raise ValueError(f"ridges are positive and at least one; got {self.ridges}")

    def _fit_targets(self, x: np.ndarray, y: np.ndarray) -> None:
        """Dual weights for y (N, C), the ridge with the least leave-one-out error."""
        gram = self._kernel(x)
        self.offset_ = y.mean(0)
        values, vectors = np.linalg.eigh(gram)
        scale, rotated = np.trace(gram) / len(gram), vectors.T @ (y - self.offset_)
        self.loo_errors_ = np.empty(len(self.ridges))
        best = np.inf
        for i, ridge in enumerate(self.ridges):
            inverse = 1 / (values.clip(min=0) + ridge * scale)
            dual = vectors @ (inverse[:, None] * rotated)
            # Residuals left out: [(K+λ)⁻¹y]_i / [(K+λ)⁻¹]_ii (Rifkin and Lippert 2007).
            left_out = dual / (vectors**2 @ inverse)[:, None]
            self.loo_errors_[i] = float((left_out**2).mean())
            if self.loo_errors_[i] < best:
                best, self.dual_, self.ridge_ = self.loo_errors_[i], dual, ridge
        self.x_ = x

    def _outputs(self, x: Any) -> np.ndarray:
        check_is_fitted(self)
        x = validate_data(self, x, dtype=np.float64, reset=False)
        return self._kernel(x, self.x_) @ self.dual_ + self.offset_


class NTKRegressor(RegressorMixin, _KernelRidge):
    """Ridge regression with the tangent kernel of an infinitely wide dense network.

    Args:
        depth: hidden layers.
        activation: between them.
        kernel: "ntk" (training all layers) or "nngp" (only the last).
        variance: of weights, times fan-in.
        bias: variance of biases.
        ridges: candidates, as fractions of the mean diagonal of the kernel.

    Attributes:
        ridge_: the candidate with the least leave-one-out mean square error.
        loo_errors_: of all candidates.
        dual_: weights of the training inputs, (N, C).
    """

    def fit(self, x: Any, y: Any) -> "NTKRegressor":
        """Fit x (N, d) to y (N,) or (N, C)."""
        self._check()
        x, y = validate_data(self, x, y, dtype=np.float64, multi_output=True, y_numeric=True)
        self._flat = y.ndim == 1
        self._fit_targets(x, np.asarray(y, dtype=np.float64).reshape(len(x), -1))
        return self

    def predict(self, x: Any) -> np.ndarray:
        """Predictions for x (N', d), in the shape of y."""
        outputs = self._outputs(x)
        return outputs[:, 0] if self._flat else outputs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class NTKClassifier(ClassifierMixin, _KernelRidge):
    """Least squares on one-hot classes with the tangent kernel; arguments as `NTKRegressor`."""

    def fit(self, x: Any, y: Any) -> "NTKClassifier":
        """Fit x (N, d) to classes y (N,)."""
        self._check()
        x, y = validate_data(self, x, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, index = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"needs at least 2 classes; got one class: {self.classes_[0]!r}")
        self._fit_targets(x, np.eye(len(self.classes_))[index])
        return self

    def decision_function(self, x: Any) -> np.ndarray:
        """One output a class, (N', C); the second minus the first, (N',), for two classes."""
        outputs = self._outputs(x)
        return outputs[:, 1] - outputs[:, 0] if len(self.classes_) == 2 else outputs

    def predict(self, x: Any) -> np.ndarray:
        """The class with the largest output, (N',)."""
        best = self._outputs(x).argmax(1)
        return self.classes_[best]
