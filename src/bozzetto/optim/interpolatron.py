"""Interpolatron: mix the last points with fixed weights."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from bozzetto.optim.mixing import Mixing, tail_sums


class Interpolatron(Mixing):
    """Mix the last points with fixed weights: by default n, …, 2, 1 normalised for a history of n.

    What it buys is a larger stable learning rate: for gradient descent on quadratics the weights
    ⅔, ⅓ double the limit and win a factor 1.5, if the rate is raised too; over momentum or Adam at
    a constant rate blocks of 5 steps help as they are, under a cosine schedule they do not
    (`benchmarks/optim.py`). `history=1, every=k, beta=a` is Lookahead(k, a) (Zhang et al. 2019);
    uniform weights restart every block from a moving average; weights (1 + γ, -γ) extrapolate.

    Memory besides the inner optimiser's: 1 copy of the parameters, `history` - 2 of them in
    `dtype`, and 1 more where beta ≠ 1 or growth is finite. Time: `history` + 1 foreach passes a
    block.

    Args:
        inner: any torch optimiser.
        history: number of points mixed.
        every: inner steps in a block.
        weights: α_0 (newest) … α_{history-1}, summing to one; None for linear ones.
        beta: how much of a block's residual is taken, in (0, 2].
        growth: the guard; `math.inf` leaves it out, as mixes within the simplex need none.
        dtype: of the history, such as `torch.bfloat16`; None for the parameters' own.

    Raises:
        ValueError: where a setting is out of its range, the weights do not sum to one or are not
            `history` many, or `inner` has no parameters.
        TypeError: if `inner` is not an optimiser.
    """

    settings = (*Mixing.settings, "weights")

    def __init__(
        self,
        inner: Optimizer,
        history: int = 3,
        every: int = 5,
        *,
        weights: Sequence[float] | None = None,
        beta: float = 1.0,
        growth: float = math.inf,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(inner, history, every, beta=beta, growth=growth, dtype=dtype)
        linear = [2 * (history - j) / (history * (history + 1)) for j in range(history)]
        self.weights = tuple(linear if weights is None else map(float, weights))
        if len(self.weights) != history:
            raise ValueError(f"history={history} needs as many weights; got {len(self.weights)}")
        if not abs(sum(self.weights) - 1) <= 1e-6:
            raise ValueError(f"weights must sum to one; got {weights}, sum {sum(self.weights)}")

    @property
    def _measured(self) -> bool:
        return math.isfinite(self.growth)

    def _tails(self, residual: list[Tensor]) -> Sequence[float]:
        return tail_sums(self.weights)
