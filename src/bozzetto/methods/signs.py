"""Signs: a small core between two matrices of ±1 that are chosen from the data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from bozzetto.linalg import derive_seed
from bozzetto.maps import LinearMap
from bozzetto.methods.choosing import Chosen, choose_signs
from bozzetto.methods.method import (
    Method,
    Objective,
    fresh_,
    fresh_bias_,
    fresh_variance,
)
from bozzetto.nn.parts import map_order, write_weight_
from bozzetto.nn.signs import Signs
from bozzetto.ops import Conv, Lookup

_SIZES = 20
_WORK = 1 << 32  # vectors × inputs × outputs: a search of about a minute


class Sides(NamedTuple):
    """The chosen signs of one group, and the weight in the bases of their spans."""

    outputs: Chosen
    inputs: Chosen
    coordinates: Tensor  # (k, k)

    def first(self, k: int) -> "Sides":
        """What choosing only k of each would have found."""
        return Sides(self.outputs.first(k), self.inputs.first(k), self.coordinates[:k, :k])

    def core(self) -> Tensor:
        """M of Tᵀ M S, T and S the signs: the least squares solution; (k, k)."""
        a, b = self.outputs.triangle, self.inputs.triangle
        left = torch.linalg.solve_triangular(a.mT, self.coordinates, upper=True)
        return torch.linalg.solve_triangular(b, left, upper=False, left=False)

    def at(self, weight: Tensor) -> "Sides":
        """The same signs for another weight, (m, d)."""
        return self._replace(coordinates=self.outputs.images @ weight @ self.inputs.images.mT)

    def weight(self) -> Tensor:
        """Tᵀ M S, (m, d)."""
        return self.outputs.signs.mT @ self.core() @ self.inputs.signs

    def explained(self) -> Tensor:
        """Of the objective, at every size at once; (k,)."""
        return self.coordinates.square().cumsum(0).cumsum(1).diagonal()


@dataclass(frozen=True)
class SignsMethod(Method):
    """W ≈ Tᵀ M S, T: (k, m) and S: (k, d) of ±1 chosen from the data, M: (k, k); size is k.

    The scaled sign matrices of Kasiviswanathan et al. (arXiv 1710.07850), but chosen: each vector
    takes most off what the vectors before it leave of the objective (`choose_signs`). Only M is
    trained; a sign is stored as one bit. Sizes end where the layer would cost more multiply-adds
    than the dense one.
    """

    recovers: ClassVar[bool] = False  # the best signs are a hard problem; these are good ones

    def values(self, m: LinearMap, size: int) -> int:
        """k² a group; the dense number beyond the largest size."""
        fits = size <= largest_signs(m)
        return size * size * m.op.groups if fits else m.weight.numel()

    def sizes(self, m: LinearMap) -> list[int]:
        """Evenly spread; one search knows the error at each."""
        most = self.most(m)
        return sorted(
            {max(1, round(most * i / _SIZES)) for i in range(1, _SIZES + 1)} if most else ()
        )

    def build(self, m: LinearMap, size: int, seed: int) -> nn.Module:
        """Sequential(Signs n → k, pointwise k → k, Signs k → m)."""
        k, bias = size * m.op.groups, m.bias is not None
        first = Signs(m.op.layer(m.inputs, k, bias=False, like=m.weight), derive_seed(seed, "in"))
        core = m.op.pointwise(k, k, bias=False, like=m.weight)
        end = m.op.pointwise(k, m.outputs, bias=bias, like=m.weight)
        last = Signs(end, derive_seed(seed, "out"))
        fresh_(core, fresh_variance(m) / (first.scale * size * last.scale) ** 2)
        fresh_bias_(last.bias, m)
        return nn.Sequential(first, core, last)

    def fit_(self, layer: nn.Module, objective: Objective) -> None:
        """Choose the signs, then the core in closed form."""
        size = cast(Tensor, cast(nn.Sequential, layer)[1].weight).shape[1]
        write_signs_(layer, choose_sides(objective, objective.w, size))
        objective.shift_bias_(self.bias(layer), self.weight(layer, objective.map))

    def weight(self, layer: nn.Module, m: LinearMap) -> Tensor:
        """Tᵀ M S."""
        first, core, last = cast(nn.Sequential, layer)
        inner = cast(Signs, first).layer
        s = map_order(inner, cast(Tensor, inner.weight)).double().cpu()
        mid = cast(Tensor, core.weight).detach().double().cpu()
        t = cast(Tensor, cast(Signs, last).layer.weight).double().cpu()
        g, (rows, d) = m.op.groups, m.block
        return t.reshape(g, rows, -1) @ mid.reshape(g, mid.shape[1], -1) @ s.reshape(g, -1, d)

    def errors(self, objective: Objective, sizes: Sequence[int]) -> list[float]:
        """What the spans of the first vectors leave, from one search for the largest size."""
        if not sizes:
            return []
        sides = choose_sides(objective, objective.w, max(sizes))
        explained = torch.stack([side.explained() for side in sides]).sum(0)
        return [max(0.0, objective.energy - float(explained[size - 1])) for size in sizes]


def largest_signs(m: LinearMap, exact: int = 0) -> int:
    """The most sign vectors a side that, beside exact factors, cost no more than the dense layer.

    In multiply-adds of a group at one input position; what stands behind a transposed convolution
    runs at the larger output. Fewer for layers so large that the search for them would take long.
    """
    rows, d = m.block
    more = math.prod(m.op.stride) if isinstance(m.op, Conv) and m.op.transposed else 1
    left = max(0, rows * d - exact * (d + more * rows))
    half = (d / more + rows) / 2
    most = math.floor((half * half + left / more) ** 0.5 - half)
    return min(rows, d, most, max(1, _WORK // (rows * d)))


def choose_sides(objective: Objective, weight: Tensor, size: int) -> list[Sides]:
    """Signs on both sides of a weight (g, m, d), group by group, in the objective's metric."""
    groups, rows, _ = weight.shape
    gradient = objective.gradient
    outputs = weight.new_ones(groups, rows) if gradient is None else gradient
    inputs = _input_metric(objective, weight)
    tall, wide = objective.whiten_output(weight), objective.whiten_input(weight)
    found = []
    for i in range(groups):
        s = choose_signs(tall[i], inputs[i], size)
        t = choose_signs(wide[i].mT, outputs[i], size)
        found.append(Sides(t, s, t.images @ weight[i] @ s.images.mT))
    return found


def _input_metric(objective: Objective, weight: Tensor) -> Tensor:
    """C with a leading axis of groups; zero where a weight of signs is: an embedding's padding."""
    groups, _, d = weight.shape
    c, op = objective.moment, objective.map.op
    c = weight.new_ones(groups, d) if c is None else c
    c = c.unsqueeze(0) if isinstance(op, Lookup) and c.ndim == 1 else c
    if isinstance(op, Lookup) and op.padding_idx is not None:
        c = c.index_fill(-1, torch.tensor(op.padding_idx), 0.0)
    return c


def write_signs_(layer: nn.Module, sides: Sequence[Sides]) -> None:
    """Set a layer that `SignsMethod.build` made to chosen signs and their cores."""
    first, core, last = cast(nn.Sequential, layer)
    first, last = cast(Signs, first), cast(Signs, last)
    first.set_(torch.cat([side.inputs.signs for side in sides]))
    last.set_(torch.cat([side.outputs.signs.mT for side in sides]))
    cores = torch.cat([side.core() for side in sides])
    write_weight_(core, cores / (first.scale * last.scale))
