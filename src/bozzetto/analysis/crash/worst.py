"""Zonotopes whose symbols are chosen by an adversary: suprema when f neurons of a layer crash."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bozzetto.analysis.crash.activations import Activation
from bozzetto.analysis.crash.symbols import (
    Fresh,
    Pair,
    Rest,
    Zonotope,
    either,
    grouped,
    none,
    total,
    wide,
)
from bozzetto.analysis.crash.zonotope import ZonotopeDomain, largest


class WorstZonotope(ZonotopeDomain):
    """At most f crashes in each layer; pairs of moments are one supremum twice."""

    def crash(self, state: Zonotope, rate: float) -> Zonotope:
        """As e ← e − b h − b e for b ∈ {0, 1} with at most f ones."""
        size = self.size(state)
        rest = none(state.value) if state.fresh is None else state.fresh.rest
        return replace(state, fresh=Fresh(rate, -state.value, size, rest))

    def size(self, state: Zonotope) -> Pair:
        """sup|e|: the f most harmful neurons of each layer, and every rest symbol."""
        most = torch.zeros_like(state.value)
        for k in state.masks.keys() | state.parts.keys():
            most = most + self._supremum(k, state)
        if state.fresh is not None:
            most = most + state.fresh.rest.both[0]
        return most, most

    def _supremum(self, k: int, state: Zonotope) -> Tensor:
        """One block: the most over f crashes of |Σ mask + drift|, plus Σ rest; (b, *s)."""
        block, rest = self.blocks[k], torch.zeros_like(state.value)
        units = state.masks.get(k, rest.unsqueeze(0))
        up, down = units, -units
        if k in state.parts:
            size = state.parts[k].abs()
            rest = (size * wide(block.rest.both[0], size)).sum(0)
            drift = grouped(size * wide(block.drift[0], size), block.groups)
            up, down = up + drift, down + drift
        f = min(int(block.rate), len(up))
        most = [v.clamp(min=0).topk(f, dim=0).values.sum(0) for v in (up, down)]
        return rest + torch.maximum(*most)

    def errors(self, state: Zonotope) -> Rest:
        """Its size without masks."""
        return either(self.size(replace(state, masks={})))

    def any_of(self, entries: Sequence[Zonotope]) -> Rest:
        """All symbols at their largest coefficients."""
        high, low = largest(entries)
        return self.errors(high).joined(self.errors(low))

    def overtaken(self, best: Zonotope, other: Zonotope) -> Rest:
        """The errors' difference, where all together may make up the lead."""
        apart = total((1.0, -1.0), (other, best))
        ahead = apart.value + apart.shift + self.size(apart)[0] > 0
        return self.errors(apart).map(lambda v: torch.where(ahead, v, 0.0))

    def bent(self, rule: Activation, state: Zonotope, at: Tensor) -> Pair:
        """Kinks: (|e| − d)₊. Curvature C: ½C e². Always: 2K|e|."""
        size, _ = self.size(state)
        most = 2 * rule.lipschitz * size
        if rule.kinks is not None:
            over = [(size - (at - kink).abs()).clamp(min=0) for kink in rule.kinks]
            most = torch.minimum(most, rule.bend * torch.stack(over).sum(0))
        elif rule.curvature is not None:
            most = torch.minimum(most, rule.curvature / 2 * size**2)
        return most, most
