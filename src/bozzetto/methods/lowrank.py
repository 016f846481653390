"""Low rank: the layer to r channels, then a pointwise map; the best one for the data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from bozzetto.maps import LinearMap
from bozzetto.methods.method import Method, Objective, shift_bias_
from bozzetto.nn.parts import map_order, write_weight_
from bozzetto.stats import Stats


@dataclass(frozen=True)
class LowRank(Method):
    """W ≈ B A with A: (r, d) carrying the taps and B: (m, r); size is the rank r of every group.

    The truncated SVD of G^½ W C^½ minimises the objective at every rank at once (Eckart and Young
    in the whitened metric): the dropped squared singular values are the error.
    """

    def unit(self, m: LinearMap) -> int:
        """M + d a group."""
        return sum(m.block) * m.op.groups

    def build(self, m: LinearMap, size: int, seed: int) -> nn.Module:
        """Sequential(layer n → r, pointwise r → m)."""
        g = m.op.groups
        first = m.op.layer(m.inputs, size * g, bias=False, like=m.weight)
        second = m.op.pointwise(size * g, m.outputs, bias=m.bias is not None, like=m.weight)
        nn.init.uniform_(cast(Tensor, second.weight), -((3 / size) ** 0.5), (3 / size) ** 0.5)
        return nn.Sequential(first, second)

    def _factors(self, m: LinearMap, stats: Stats | None, rank: int) -> tuple[Tensor, Tensor]:
        """A: (g, r, d) and B: (g, m, r) of the optimum."""
        objective = Objective(m, stats)
        u, s, vh = torch.linalg.svd(objective.whiten(objective.w), full_matrices=False)
        root = s[:, :rank].sqrt()
        a, b = root.unsqueeze(-1) * vh[:, :rank], u[:, :, :rank] * root.unsqueeze(-2)
        if objective.input_roots is not None:
            inverse = objective.input_roots[1]
            a = a * inverse if inverse.ndim == 1 else a @ inverse
        if objective.output_roots is not None:
            b = objective.output_roots[1] @ b
        return a, b

    def fit_(self, layer: nn.Module, m: LinearMap, stats: Stats | None) -> None:
        """The optimum at the layer's rank."""
        first, second = cast(nn.Sequential, layer)
        rank = cast(Tensor, second.weight).shape[1]
        a, b = self._factors(m, stats, rank)
        write_weight_(first, a)
        write_weight_(second, b)
        shift_bias_(cast(nn.Parameter | None, second.bias), m, stats, self.weight(layer, m))

    def weight(self, layer: nn.Module, m: LinearMap) -> Tensor:
        """B A."""
        first, second = cast(nn.Sequential, layer)
        g = m.op.groups
        a = map_order(first, cast(Tensor, first.weight)).detach().double().cpu()
        b = cast(Tensor, second.weight).detach().double().cpu()
        return b.reshape(g, m.block[0], -1) @ a.reshape(g, -1, m.block[1])

    def errors(self, m: LinearMap, stats: Stats | None, sizes: Sequence[int]) -> list[float]:
        """Sums of the dropped squared singular values."""
        objective = Objective(m, stats)
        s = torch.linalg.svdvals(objective.whiten(objective.w)).square().sum(0)
        return [float(s[size:].sum()) for size in sizes]
