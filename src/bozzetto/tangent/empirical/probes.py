"""Estimates of the tangent kernel from random directions in parameter space, and its operator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from scipy.stats import t as student
from torch import Tensor, nn

from bozzetto.tangent.empirical.network import Linearised, Network, Parameters, network
from bozzetto.tangent.pairs import blocks


@dataclass(frozen=True)
class ProbedKernel:
    """A kernel's estimate (N, N') and each entry's standard error, from `probes` directions."""

    kernel: Tensor
    error: Tensor
    probes: int

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Confidence bounds of each entry (Student's t)."""
        if not 0 < level < 1:
            raise ValueError(f"a confidence level is between 0 and 1; got {level}")
        reach = float(student.ppf((1 + level) / 2, self.probes - 1)) * self.error
        return self.kernel - reach, self.kernel + reach


def probed_ntk(
    model: nn.Module, x: Tensor, x2: Tensor | None = None, *, probes: int = 64, seed: int = 0
) -> ProbedKernel:
    """The mean-output kernel from E (J z)(J' z)ᵀ, z of random signs: two backward passes a probe.

    Raises:
        ValueError: for fewer than two probes.
    """
    if probes < 2:
        raise ValueError(f"an error estimate needs at least 2 probes; got {probes}")
    net = network(model)
    both = x if x2 is None else torch.cat([x, x2])
    generator = torch.Generator().manual_seed(seed)
    columns = slice(0 if x2 is None else len(x), None)
    total, square = 0.0, 0.0
    linear = Linearised(net, both)
    for _ in range(probes):
        j = linear.times(_signs(net, generator))
        value = j[: len(x)] @ j[columns].T / j.shape[1]
        total, square = total + value, square + value**2
    assert isinstance(total, Tensor)
    mean = total / probes
    variance = (square / probes - mean**2).clamp(min=0) * probes / (probes - 1)
    return ProbedKernel(mean.detach(), (variance / probes).sqrt().detach(), probes)


def _signs(net: Network, generator: torch.Generator) -> Parameters:
    return {
        k: torch.randint(0, 2, v.shape, generator=generator).to(v) * 2 - 1
        for k, v in net.parameters.items()
    }


class TangentOperator(LinearOperator):
    """J Jᵀ at inputs x as a scipy operator on R^{N O}: never formed, two passes a product.

    Inputs go through in blocks, so memory does not grow with N. Feed it to
    `scipy.sparse.linalg.eigsh` for the spectrum or `cg` for kernel regression.

    Raises:
        ValueError: for batch norm in training mode, which blocks would change.
    """

    def __init__(self, model: nn.Module, x: Tensor, *, block: int = 256) -> None:
        self.net, self.x, self.block = network(model), x, block
        if self.net.coupled:
            raise ValueError("batch norm in training mode couples inputs: model.eval() first")
        with torch.no_grad():
            self.outputs = self.net(self.net.parameters, x[:1]).shape[1]
        size = len(x) * self.outputs
        super().__init__(dtype=np.dtype(np.float64), shape=(size, size))

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self._forward(self._backward(x)).cpu().numpy().astype(np.float64)

    def _rmatvec(self, x: np.ndarray) -> np.ndarray:
        return self._matvec(x)

    def _backward(self, vector: np.ndarray) -> Parameters:
        """Jᵀ v, summed over blocks."""
        parameters = self.net.parameters
        weights = torch.from_numpy(np.array(vector)).view(len(self.x), self.outputs)
        total = {k: torch.zeros_like(v) for k, v in parameters.items()}
        for rows in blocks(len(self.x), self.block):
            part = Linearised(self.net, self.x[rows]).transpose(weights[rows])
            total = {k: v + part[k] for k, v in total.items()}
        return total

    def _forward(self, direction: Parameters) -> Tensor:
        """J w, block by block: (N O,)."""
        rows = blocks(len(self.x), self.block)
        return torch.cat([Linearised(self.net, self.x[r]).times(direction) for r in rows]).flatten()
