"""Functions that couple positions: the contract by which a program's rules treat them."""

from abc import ABC, abstractmethod

from torch import Tensor


class JointActivation(ABC):
    """φ: R^P → R^P applied at every coordinate to the P positions of a vector together.

    `left` (..., P, P) and `right` (..., Q, Q) are the covariances of the arguments at two inputs,
    `cross` (..., P, Q) that between them.
    """

    growth = "polynomial"

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """φ along the last axis."""

    @abstractmethod
    def moment(self, left: Tensor, right: Tensor, cross: Tensor) -> Tensor:
        """E φ(u) φ(v)ᵀ: (..., P, Q)."""

    @abstractmethod
    def pull(self, gradient: Tensor, left: Tensor, right: Tensor, cross: Tensor) -> Tensor:
        """E J(u)ᵀ gradient J(v), J the Jacobian of φ: (..., P, Q) -> (..., P, Q)."""
