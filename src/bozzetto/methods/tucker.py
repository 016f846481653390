"""Tucker-2 of a convolution: pointwise to fewer inputs, a core with the taps, pointwise out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from bozzetto.maps import LinearMap
from bozzetto.methods.method import Method, Objective, spread_sizes
from bozzetto.moments import damped
from bozzetto.nn.parts import map_order, write_weight_
from bozzetto.ops import Conv


class Factors(NamedTuple):
    """W ≈ B · core · (A ⊗ I_taps), one of each a group."""

    a: Tensor  # (g, r_in, n)
    core: Tensor  # (g, r_out, r_in·taps)
    b: Tensor  # (g, m, r_out)

    def weight(self) -> Tensor:
        """(g, m, d)."""
        g, r_in, _ = self.a.shape
        core = self.core.reshape(g, -1, r_in, self.core.shape[-1] // r_in)
        return self.b @ torch.einsum("gorT,grn->gonT", core, self.a).flatten(2)


@dataclass(frozen=True)
class Tucker(Method):
    """W ≈ B · core · (A ⊗ I): both channel modes shrink alike; size is the larger rank.

    A starts at the leading directions of the input mode, whitened by the channels' moment; given A,
    B and the core are the reduced-rank regression of the layer in the full patch moment, exact;
    A is then improved by conjugate gradients on its own least squares, `rounds` times (the
    alternating form of importance-sketched tensor regression, Zhang et al. 2020).
    """

    rounds: int = 2

    def _ranks(self, m: LinearMap, size: int) -> tuple[int, int]:
        """(r_in, r_out) of a size."""
        n, rows = m.weight.shape[1], m.block[0]
        wide = max(n, rows)
        return max(1, round(size * n / wide)), max(1, round(size * rows / wide))

    def values(self, m: LinearMap, size: int) -> int:
        """r_in·n + r_in·r_out·taps + r_out·m a group; only plain convolutions with taps have it."""
        n, rows, taps = m.weight.shape[1], m.block[0], m.block[1] // m.weight.shape[1]
        if not isinstance(m.op, Conv) or m.op.transposed or taps == 1 or min(n, rows) < 2:
            return m.weight.numel()
        r_in, r_out = self._ranks(m, size)
        return (r_in * n + r_in * r_out * taps + r_out * rows) * m.op.groups

    def sizes(self, m: LinearMap) -> list[int]:
        """Fewer than low rank has: each one is fitted to know its error."""
        return spread_sizes(self.most(m), 10)

    def build(self, m: LinearMap, size: int, seed: int) -> nn.Module:
        """Sequential(pointwise n → r_in, layer r_in → r_out, pointwise r_out → m)."""
        (r_in, r_out), g = self._ranks(m, size), m.op.groups
        first = m.op.pointwise(m.inputs, r_in * g, bias=False, like=m.weight)
        core = m.op.layer(r_in * g, r_out * g, bias=False, like=m.weight)
        last = m.op.pointwise(r_out * g, m.outputs, bias=m.bias is not None, like=m.weight)
        for part, fan_in in ((first, m.weight.shape[1]), (last, r_out)):
            bound = (3 / fan_in) ** 0.5
            nn.init.uniform_(cast(Tensor, part.weight), -bound, bound)
        return nn.Sequential(first, core, last)

    def _factors(self, objective: Objective, size: int) -> Factors:
        r_in, r_out = self._ranks(objective.map, size)
        a = _leading_inputs(objective, r_in)
        factors = _regress(objective, a, r_out)
        for _ in range(self.rounds):
            factors = _regress(objective, _improve_inputs(objective, factors), r_out)
        return factors

    def fit_(self, layer: nn.Module, objective: Objective) -> None:
        """Write the factors into the three layers."""
        first, core, last = cast(nn.Sequential, layer)
        rank = max(
            cast(Tensor, first.weight).shape[0] // objective.map.op.groups,
            cast(Tensor, last.weight).shape[1],
        )
        factors = self._factors(objective, rank)
        for part, value in zip((first, core, last), factors, strict=True):
            write_weight_(part, value)
        objective.shift_bias_(self.bias(layer), self.weight(layer, objective.map))

    def weight(self, layer: nn.Module, m: LinearMap) -> Tensor:
        """B · core · (A ⊗ I)."""
        first, core, last = cast(nn.Sequential, layer)
        g = m.op.groups
        a, mid, b = (
            map_order(part, cast(Tensor, part.weight)).detach().double().cpu()
            for part in (first, core, last)
        )
        r_out = b.shape[1]
        return Factors(
            a.reshape(g, -1, m.weight.shape[1]), mid.reshape(g, r_out, -1), b.reshape(g, -1, r_out)
        ).weight()

    def errors(self, objective: Objective, sizes: Sequence[int]) -> list[float]:
        """Before A is improved: what `fit_` reaches or betters, in a fraction of the time."""
        start = replace(self, rounds=0)
        fits = (start._factors(objective, size).weight() for size in sizes)
        return [objective.error(objective.w - fit) for fit in fits]


def _taps(objective: Objective) -> int:
    return objective.map.block[1] // objective.map.weight.shape[1]


def _leading_inputs(objective: Objective, rank: int) -> Tensor:
    """A: the input mode's leading directions, whitened by the channels' own moment; (g, r, n)."""
    n, taps = objective.map.weight.shape[1], _taps(objective)
    w = objective.whiten_output(objective.w)
    modes = w.unflatten(-1, (n, taps)).movedim(2, 1).flatten(2)  # (g, n, m·taps)
    if objective.moment is None:
        u = torch.linalg.svd(modes, full_matrices=False)[0]
        return u[:, :, :rank].mT
    blocks = objective.moment.unflatten(-1, (n, taps)).unflatten(1, (n, taps))
    root = torch.linalg.cholesky(blocks.diagonal(dim1=2, dim2=4).mean(-1))  # (g, n, n)
    u = torch.linalg.svd(root.mT @ modes, full_matrices=False)[0]
    return torch.linalg.solve_triangular(root, u[:, :, :rank].mT, upper=False, left=False)


def _regress(objective: Objective, a: Tensor, rank: int) -> Factors:
    """The best B and core for a given A: reduced-rank regression in the objective's metric."""
    wide = _kron_taps(a, _taps(objective))  # (g, r_in·taps, d)
    c = objective.moment
    cw = wide if c is None else wide @ c
    root = torch.linalg.cholesky(damped(cw @ wide.mT, 1e-12))
    seen = torch.linalg.solve_triangular(root, cw @ objective.w.mT, upper=False).mT
    seen = objective.whiten_output(seen)
    u, s, vh = torch.linalg.svd(seen, full_matrices=False)
    core = s[:, :rank].unsqueeze(-1) * vh[:, :rank]
    core = torch.linalg.solve_triangular(root, core, upper=False, left=False)
    return Factors(a, core, objective.unwhiten_output(u[:, :, :rank]))


def _kron_taps(a: Tensor, taps: int) -> Tensor:
    """A ⊗ I_taps: (g, r, n) -> (g, r·taps, n·taps)."""
    eye = torch.eye(taps, dtype=a.dtype)
    return torch.einsum("grn,st->grsnt", a, eye).flatten(3).flatten(1, 2)


def _improve_inputs(objective: Objective, factors: Factors, steps: int = 12) -> Tensor:
    """A after conjugate gradients on ‖Kᵀ(W − H(A ⊗ I))L‖² with H = B · core fixed; (g, r_in, n)."""
    n, taps = objective.map.weight.shape[1], _taps(objective)
    h = factors.b @ factors.core  # (g, m, r_in·taps)
    gh = h if objective.gradient is None else objective.gradient @ h
    inner, c = gh.mT @ h, objective.moment  # (g, r·taps, r·taps)

    def project(x: Tensor) -> Tensor:
        """Sum over equal taps: (g, r·taps, d) -> (g, r, n)."""
        blocks = x.unflatten(-1, (n, taps)).unflatten(1, (-1, taps))
        return blocks.diagonal(dim1=2, dim2=4).sum(-1)

    def times_c(x: Tensor) -> Tensor:
        return x if c is None else x @ c

    def normal(a: Tensor) -> Tensor:
        return project(times_c(inner @ _kron_taps(a, taps)))

    a = factors.a
    residual = project(times_c(gh.mT @ objective.w)) - normal(a)
    direction, energy = residual, residual.square().sum((1, 2), keepdim=True)
    for _ in range(steps):
        image = normal(direction)
        step = energy / (direction * image).sum((1, 2), keepdim=True).clamp_min(1e-300)
        a = a + step * direction
        residual = residual - step * image
        new = residual.square().sum((1, 2), keepdim=True)
        direction, energy = residual + new / energy.clamp_min(1e-300) * direction, new
    return a
