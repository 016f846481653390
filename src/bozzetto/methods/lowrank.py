"""Low rank: the layer to r channels, then a pointwise map; the best one for the data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from bozzetto.maps import LinearMap
from bozzetto.methods.method import Method, Objective, fresh_, fresh_bias_, fresh_variance
from bozzetto.nn.parts import map_order, write_weight_


@dataclass(frozen=True)
class LowRank(Method):
    """W ≈ B A with A: (r, d) carrying the taps and B: (m, r); size is the rank r of every group.

    The truncated SVD of Kᵀ W L minimises the objective at every rank at once (Eckart and Young
    in the whitened metric): the dropped squared singular values are the error.
    """

    needs_moments: ClassVar[bool] = False

    def values(self, m: LinearMap, size: int) -> int:
        """r(m + d) a group."""
        return size * sum(m.block) * m.op.groups

    def build(self, m: LinearMap, size: int, seed: int) -> nn.Module:
        """Sequential(layer n → r, pointwise r → m)."""
        g = m.op.groups
        first = m.op.layer(m.inputs, size * g, bias=False, like=m.weight)
        second = m.op.pointwise(size * g, m.outputs, bias=m.bias is not None, like=m.weight)
        fresh_(first, fresh_variance(m))
        fresh_(second, 1 / size)
        fresh_bias_(self.bias(second), m)
        return nn.Sequential(first, second)

    def fit_(self, layer: nn.Module, objective: Objective) -> None:
        """The optimum at the layer's rank."""
        first, second = cast(nn.Sequential, layer)
        rank = cast(Tensor, second.weight).shape[1]
        a, b = balanced(*truncate(objective, objective.w, rank))
        write_weight_(first, a)
        write_weight_(second, b)
        objective.shift_bias_(self.bias(layer), self.weight(layer, objective.map))

    def weight(self, layer: nn.Module, m: LinearMap) -> Tensor:
        """B A."""
        first, second = cast(nn.Sequential, layer)
        g = m.op.groups
        a = map_order(first, cast(Tensor, first.weight)).detach().double().cpu()
        b = cast(Tensor, second.weight).detach().double().cpu()
        return b.reshape(g, m.block[0], -1) @ a.reshape(g, -1, m.block[1])

    def errors(self, objective: Objective, sizes: Sequence[int]) -> list[float]:
        """Sums of the dropped squared singular values."""
        s = torch.linalg.svdvals(objective.whiten(objective.w)).square().sum(0)
        return [float(s[size:].sum()) for size in sizes]


def truncate(objective: Objective, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A: (g, r, d) and B: (g, m, r) of the best B A for a weight (g, m, d) in the objective."""
    u, s, vh = torch.linalg.svd(objective.whiten(weight), full_matrices=False)
    root = s[:, :rank].sqrt()
    a = objective.unwhiten_input(root.unsqueeze(-1) * vh[:, :rank])
    return a, objective.unwhiten_output(u[:, :, :rank] * root.unsqueeze(-2))


def balanced(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Other factors A: (g, r, d) and B: (g, m, r) of the same product, for training on.

    Those of its own singular value decomposition, each with the roots of the singular values: the
    factors of a fit in another metric may differ a thousandfold in size, and then so do gradients.
    """
    (qa, ra), (qb, rb) = torch.linalg.qr(a.mT), torch.linalg.qr(b)
    u, s, vh = torch.linalg.svd(rb @ ra.mT, full_matrices=False)
    root = s.sqrt()
    return root.unsqueeze(-1) * (vh @ qa.mT), (qb @ u) * root.unsqueeze(-2)
