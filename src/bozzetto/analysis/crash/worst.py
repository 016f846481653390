"""Zonotopes whose symbols are chosen by an adversary: suprema when f neurons of a layer crash."""

from dataclasses import replace

import torch
from torch import Tensor

from bozzetto.analysis.crash.activations import Activation
from bozzetto.analysis.crash.symbols import Block, Fresh, Pair, Zonotope, rising, wide
from bozzetto.analysis.crash.zonotope import ZonotopeDomain


class WorstZonotope(ZonotopeDomain):
    """At most f crashes in each layer; pairs of moments are one supremum twice."""

    def crash(self, state: Zonotope, rate: float) -> Zonotope:
        """As e ← e − b h − b e for b ∈ {0, 1} with at most f ones."""
        size = self.size(state)
        zero = torch.zeros_like(size[0])
        rest = rising((zero, zero)) if state.fresh is None else state.fresh.rest
        return replace(state, fresh=Fresh(rate, -state.value, size, rest))

    def size(self, state: Zonotope) -> Pair:
        """sup|e|: the f most harmful neurons of each layer, and every rest symbol."""
        total = torch.zeros_like(state.value)
        for k, part in state.parts.items():
            total = total + _block_supremum(self.blocks[k], part)
        if state.fresh is not None:
            total = total + state.fresh.rest.both[0]
        return total, total

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

    def above(self, state: Zonotope, gap: Tensor) -> Pair:
        """(|e| − gap)₊."""
        over = (self.size(state)[0] - gap).clamp(min=0)
        return over, over


def _block_supremum(block: Block, part: Tensor) -> Tensor:
    """The most over f crashes of |Σ E(hit·b + drift)| plus Σ|E| rest; (b, *s)."""
    size = part.abs()
    rest = (size * wide(block.rest.both[0], part)).sum(0)
    if not block.rate:
        return rest
    hit, drift = part * wide(block.hit, part), size * wide(block.drift[0], part)
    most = [_top(sign * hit + drift, block) for sign in (1, -1)]
    return rest + torch.maximum(*most)


def _top(values: Tensor, block: Block) -> Tensor:
    """Σ of the f largest positive entries (of groups that share a mask) along the first axis."""
    if block.groups > 1:
        values = values.unflatten(0, (-1, block.groups)).sum(1)
    return values.clamp(min=0).topk(int(block.rate), dim=0).values.sum(0)
