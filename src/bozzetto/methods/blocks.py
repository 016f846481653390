"""Blocks: cores sketched along both modes at once, by folds with orthogonal signs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bozzetto.linalg import derive_seed
from bozzetto.maps import LinearMap
from bozzetto.methods.method import (
    Method,
    Objective,
    fitted_errors,
    fresh_,
    fresh_bias_,
    fresh_variance,
    spread_sizes,
)
from bozzetto.nn.blocks import Blocked, BlockLinear, BlockTable, Isometry, factors
from bozzetto.nn.parts import Down, Sum, Up, map_order, write_weight_
from bozzetto.ops import Conv, Lookup

_ROUNDS = 100
_SETTLED = 1e-12  # of the gradient's first norm


@dataclass(frozen=True)
class Blocks(Method):
    """W ≈ √l Σ_t V_tᵀ S_t U_t, t = 1 … l: every term is sketched on both sides.

    U_t and V_t are folds with orthogonal signs, so that the stacked U and V are isometries
    (`Isometry`) and the S_t, with the taps, blocks of a diagonal between them: l times fewer values
    and multiply-adds, and full rank. The tangent kernel of fresh cores is the dense layer's on
    average, with a relative variance of (l − 1)/(mn) (for vectors of signs); one fold on one side,
    of as many values, has (l − 1)/n: the terms' sketches are orthogonal, so that errors of first
    order cancel. Size is the rows of a U_t, ⌈n/l⌉.
    """

    recovers: ClassVar[bool] = False  # conjugate gradients stop short in ill-conditioned metrics
    random: ClassVar[bool] = True

    def blocks(self, m: LinearMap, size: int) -> int:
        """How many at a size: the fewest that pay and have at most so many rows."""
        n, rows = _widths(m)
        counts = _counts(n, rows)
        return next((count for count in counts if -(-n // count) <= size), counts[-1])

    def values(self, m: LinearMap, size: int) -> int:
        """l·⌈m/l⌉·⌈n/l⌉ times the taps, a group."""
        n, rows = _widths(m)
        return _values(n, rows, self.blocks(m, size)) * _taps(m) * m.op.groups

    def every_size(self, m: LinearMap, *, quick: bool = False) -> list[int]:
        """One for every number of blocks that pays, ascending; `quick`: in multiply-adds too."""
        (n, rows), taps, found = _widths(m), _taps(m), list[int]()
        least = taps * n * rows
        for size in sorted({-(-n // count) for count in _counts(n, rows)[1:]}, reverse=True):
            count = self.blocks(m, size)  # several may have so many rows
            mixing = sum(f for f in factors(count) if f > 1) * _mixed(m, count)
            work = taps * _values(n, rows, count) + mixing
            if work < least or not quick:
                found.append(size)
                least = work
        return sorted(found)

    def sizes(self, m: LinearMap) -> list[int]:
        """A dozen at most."""
        every = self.every_size(m)
        return [every[i - 1] for i in spread_sizes(len(every), 12)]

    def build(self, m: LinearMap, size: int, seed: int) -> nn.Module:
        """Sequential(Down, core of l blocks, Up), and the bias."""
        n, rows = _widths(m)
        count, g, like = self.blocks(m, size), m.op.groups, m.weight
        down = Isometry(n, count, derive_seed(seed, "in")).to(like.device)
        up = Isometry(rows, count, derive_seed(seed, "out")).to(like.device)
        last = Up(up, m.op.dim, g, count**0.5)
        if isinstance(m.op, Lookup):
            table = torch.empty(down.k, up.rows, device=like.device, dtype=like.dtype)
            core: nn.Module = BlockTable(down, table, m.op.padding_idx)
            parts = nn.Sequential(core, last)
        else:
            core = _core(m, down, up)
            parts = Blocked(Down(down, m.op.dim, g), core, last)
        fresh_(core, fresh_variance(m))
        bias = None if m.bias is None else torch.empty_like(m.bias)
        made = Sum(parts, bias=bias, dim=m.op.dim)
        fresh_bias_(made.bias, m)
        return made

    def fit_(self, layer: nn.Module, objective: Objective) -> None:
        """Conjugate gradients on the objective, from its projection in the identity's metric."""
        form = _Form(layer, objective.map)
        write_weight_(form.core, form.stored(form.best(objective)))
        objective.shift_bias_(self.bias(layer), self.weight(layer, objective.map))

    def weight(self, layer: nn.Module, m: LinearMap) -> Tensor:
        """√l Σ V_tᵀ S_t U_t."""
        form = _Form(layer, m)
        return form.weight(form.cores())

    def errors(self, objective: Objective, sizes: Sequence[int]) -> list[float]:
        """Of a fit at every size, for one draw of the sketches."""
        return fitted_errors(self, objective, sizes)


class _Form:
    """A layer as algebra: cores S (g, l, h, k, taps) between isometries, float64."""

    def __init__(self, layer: nn.Module, m: LinearMap) -> None:
        parts = cast(nn.Sequential, cast(Sum, layer).terms[0])
        self.core, last = parts[-2], cast(Up, parts[-1])
        first = self.core if isinstance(self.core, BlockTable) else cast(Down, parts[0])
        down = first.sketch
        self.g, self.block, self.l = m.op.groups, m.block, cast(Isometry, down).blocks
        self.u = cast(Isometry, down).dense().double().cpu().unflatten(0, (self.l, -1))  # (l, k, n)
        if isinstance(self.core, BlockTable) and self.core.padding_idx is not None:
            self.u[..., self.core.padding_idx] = 0.0
        self.v = last.sketch.dense().double().cpu().unflatten(0, (self.l, -1)) * last.scale

    def cores(self) -> Tensor:
        """S of the layer as it stands."""
        weight = cast(Tensor, self.core.weight).detach().double().cpu()
        if isinstance(self.core, BlockTable):
            return weight.unflatten(0, (self.l, -1)).mT[None, ..., None]
        shape = self.g, self.l, self.v.shape[1], self.u.shape[1], -1
        return map_order(self.core, weight).reshape(shape)

    def stored(self, cores: Tensor) -> Tensor:
        """S in the order that `write_weight_` takes."""
        if isinstance(self.core, BlockTable):
            return cores[0, ..., 0].mT.flatten(0, 1)
        return cores.flatten(0, 2)

    def weight(self, cores: Tensor) -> Tensor:
        """W of cores, (g, m, d)."""
        return torch.einsum("lhm,glhkt,lkn->gmnt", self.v, cores, self.u).reshape(
            self.g, *self.block
        )

    def adjoint(self, change: Tensor) -> Tensor:
        """The cores' gradient for one of the weight, (g, m, d)."""
        parts = change.reshape(self.g, self.block[0], self.u.shape[2], -1)
        return torch.einsum("lhm,gmnt,lkn->glhkt", self.v, parts, self.u)

    def best(self, objective: Objective) -> Tensor:
        """The cores of least objective."""
        cores = self.adjoint(objective.w) / self.l
        left = self.adjoint(objective.slope(objective.w - self.weight(cores)))
        step, size = left, left.square().sum()
        least = _SETTLED**2 * size
        for _ in range(_ROUNDS):
            if size <= least or size == 0:
                break
            turned = self.adjoint(objective.slope(self.weight(step)))
            rate = size / (step * turned).sum()
            cores, left = cores + rate * step, left - rate * turned
            before, size = size, left.square().sum()
            step = left + size / before * step
        return cores


def _core(m: LinearMap, down: Isometry, up: Isometry) -> nn.Module:
    """The op's layer between the isometries, in l times the groups."""
    g, like = m.op.groups, m.weight
    if isinstance(m.op, Conv):
        op: Any = replace(m.op, groups=g * down.blocks)
        return op.layer(g * down.k, g * up.k, bias=False, like=like)
    return BlockLinear(down.k, up.k, down.blocks, device=like.device, dtype=like.dtype)


def _widths(m: LinearMap) -> tuple[int, int]:
    """Channels in and out of a group."""
    return m.weight.shape[1], m.block[0]


def _taps(m: LinearMap) -> int:
    return m.block[1] // m.weight.shape[1]


def _mixed(m: LinearMap, blocks: int) -> float:
    """Channels that the isometries mix for an output position."""
    n, rows = (blocks * -(-width // blocks) for width in _widths(m))
    if not isinstance(m.op, Conv):
        return rows if isinstance(m.op, Lookup) else n + rows
    inputs = math.prod(m.op.stride)
    return rows + (n / inputs if m.op.transposed else n * inputs)


def _values(n: int, m: int, blocks: int) -> int:
    return blocks * -(-n // blocks) * -(-m // blocks)


@lru_cache(maxsize=4096)
def _counts(n: int, m: int) -> list[int]:
    """Numbers of blocks, ascending, that hold fewer values than every smaller number."""
    found = [1]
    for count in range(2, min(n, m) + 1):
        if _values(n, m, count) < _values(n, m, found[-1]):
            found.append(count)
    return found
