"""Planted low-rank regressions and the least squares that knows their directions."""

from dataclasses import dataclass

import numpy as np
import torch

from bozzetto.regress.designs import Dense
from bozzetto.regress.directions import Directions
from bozzetto.regress.moments import Block
from bozzetto.regress.sketched import sketch_block, unpack
from bozzetto.tensors import Tucker


@dataclass(frozen=True)
class Planted:
    """X (n, p₁, …), y (n, q₁, …) = X · truth + 2 + noise."""

    x: np.ndarray
    y: np.ndarray
    truth: Tucker
    noise: float

    def error(self, coef: np.ndarray) -> float:
        full = self.truth.full().numpy()
        return float(np.linalg.norm(coef - full) / np.linalg.norm(full))

    def oracle(self) -> float:
        """Error of least squares in the tangent space at the truth."""
        directions, _ = Directions.at(self.truth)
        ones = torch.ones(len(self.y)).double()
        x, y = torch.from_numpy(self.x), torch.from_numpy(self.y)
        sketched = sketch_block(Block(Dense(x), y, ones), directions)
        outside = [part.solve(0.0, 0.0) for part in sketched.outside]
        point = unpack(sketched.main.solve(0.0, 0.0), outside, directions)
        return self.error(directions.tensor(point).full().numpy())


def random_tucker(shape: tuple[int, ...], ranks: tuple[int, ...], seed: int) -> Tucker:
    """Orthonormal random factors and a core of norm 1 with no small singular values."""
    g = torch.Generator().manual_seed(seed)
    pairs = zip(shape, ranks, strict=True)
    draws = [torch.randn(p, r, generator=g, dtype=torch.float64) for p, r in pairs]
    core = torch.randn(ranks, generator=g, dtype=torch.float64)
    return Tucker(core / core.norm(), tuple(torch.linalg.qr(draw)[0] for draw in draws))


def planted(
    shape: tuple[int, ...],
    ranks: tuple[int, ...],
    n: int,
    noise: float,
    *,
    seed: int = 0,
    response: int = 0,
    correlation: float = 0.0,
) -> Planted:
    """The last `response` modes of `shape` are the response's; AR(1) covariates along each mode."""
    rng = np.random.default_rng(seed)
    truth = random_tucker(shape, ranks, seed)
    order = len(shape) - response
    x = rng.standard_normal((n, *shape[:order]))
    for k, p in enumerate(shape[:order] if correlation else ()):
        root = np.linalg.cholesky(correlation ** np.abs(np.subtract.outer(range(p), range(p))))
        x = np.moveaxis(np.moveaxis(x, k + 1, -1) @ root.T, -1, k + 1)
    y = np.tensordot(x, truth.full().numpy(), order) + 2.0
    return Planted(x, y + noise * rng.standard_normal(y.shape), truth, noise)
