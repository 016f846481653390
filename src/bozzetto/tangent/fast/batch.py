"""Fast kernels of batch-normalised ReLU networks, within a batch and between two."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from bozzetto.tangent.batchnorm import SMALL_BATCH, BatchNormRectifier
from bozzetto.tangent.fast.chain import Kernels
from bozzetto.tangent.program import Respect, unit


def batch_normalised_kernels(
    x: Tensor,
    depth: int,
    x2: Tensor | None = None,
    *,
    variance: float = 1.0,
    readout: float = 1.0,
    respect_to: Respect = "unit",
    tolerance: float = 1e-8,
) -> Kernels:
    """Kernels of `depth` × relu(batchnorm(W ·)) and a readout, between the members of batches.

    x (B, d) is one batch; with x2 (B', d), another batch that goes through the network apart, the
    kernels are (B, B'). Θ ← Σ + B*[Θ] with one adjoint of the backward map a layer, instead of one
    backward pass a pair of inputs as in *Tensor Programs II* (arXiv 2006.14548, appendix E.4).

    Computed in float64, given in the type of x.

    Raises:
        ValueError: below batch 4, where the tangent kernel has no finite limit.
    """
    kind, x = x.dtype, x.double()
    x2 = None if x2 is None else x2.double()
    phi = BatchNormRectifier(tolerance)
    if min(len(x), len(x if x2 is None else x2)) < 6:
        warnings.warn(SMALL_BATCH, stacklevel=2)
    rate = variance if unit(respect_to) else 1.0
    last = readout if unit(respect_to) else 1.0
    left = x @ x.T / x.shape[1]
    if x2 is None:
        theta = torch.zeros_like(left)
        for _ in range(depth):
            inner = variance * theta + rate * left
            left, theta = phi.within_both(variance * left, inner)
        return _kernels(left, theta, readout, last, kind)
    right, cross = x2 @ x2.T / x2.shape[1], x @ x2.T / x2.shape[1]
    theta = torch.zeros_like(cross)
    for _ in range(depth):
        sides = (variance * left, variance * right, variance * cross)
        theta = phi.across_push(*sides, variance * theta + rate * cross)
        left, right, cross = phi.within(sides[0]), phi.within(sides[1]), phi.across(*sides)
    return _kernels(cross, theta, readout, last, kind)


def _kernels(c: Tensor, theta: Tensor, readout: float, last: float, kind: torch.dtype) -> Kernels:
    return Kernels((readout * c).to(kind), (readout * theta + last * c).to(kind))
