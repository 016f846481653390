"""Regression of vectors and tensors on tensors: `ISLETMultiRegressor`."""

from sklearn.utils import Tags

from bozzetto.regress.model import TensorRegressor

__all__ = ["ISLETMultiRegressor"]


class ISLETMultiRegressor(TensorRegressor):
    """Regression of vectors or tensors on tensors, Y = C + ⟨X, A⟩ + E, with A of low rank.

    As `ISLETRegressor`, with A of shape (p₁, …, p_d, q₁, …): `ranks` has one number for each of
    these modes, the response's last. What lies outside the response's directions decouples into
    one small regression a response mode.

    `y` is (n, q₁, …), `coef_` (p₁, …, p_d, q₁, …), `intercept_` (q₁, …) and `predict` gives
    (n, q₁, …).
    """

    _scalar = False

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
