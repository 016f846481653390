"""The papers' bounds: forward error propagation by Lipschitz constant, width and depth alone.

El Mhamdi, Guerraoui, Rouault, arXiv 1707.08167; El Mhamdi, Guerraoui, arXiv 1706.08884.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bozzetto.analysis.crash.activations import Activation
from bozzetto.analysis.crash.rules import Affine, Combine, Concat, Maximum, Mixing
from bozzetto.analysis.crash.walk import Domain


@dataclass(frozen=True)
class Largest:
    """The largest healthy value C, and the error of a layer's worst neuron; all (b,).

    `struck` neurons have just crashed: each is wrong by at most C, the others by `error`.
    """

    value: Tensor  # (b, *s)
    size: Tensor
    error: Tensor
    struck: float = 0.0

    @property
    def total(self) -> Tensor:
        """The error of any neuron."""
        return self.error + self.size * (self.struck > 0)


class Expected(Domain[Largest]):
    """E|Δ| ≤ Σ_l p_l C_l ‖W_{l+1}‖_∞ Π_{l'>l} (1 − p_l') K ‖W_{l'+1}‖_∞."""

    def start(self, x: Tensor) -> Largest:
        """No error."""
        return self._plain(x, torch.zeros(len(x), dtype=x.dtype, device=x.device))

    def _plain(self, value: Tensor, error: Tensor) -> Largest:
        return Largest(value, value.reshape(len(value), -1).abs().amax(1), error)

    def affine(self, rule: Affine, state: Largest) -> Largest:
        """‖W‖_∞ times the error."""
        row = rule.power(torch.ones_like(state.value[:1]), 1).max()
        return self._plain(rule.run(state.value), row * state.total)

    def activate(self, rule: Activation, state: Largest) -> Largest:
        """K times the error; C is sup|φ|, or the largest healthy value where φ is unbounded."""
        after = self._plain(rule.function(state.value), rule.lipschitz * state.total)
        if rule.supremum == torch.inf:
            return after
        return replace(after, size=torch.full_like(after.size, rule.supremum))

    def maximum(self, rule: Maximum, state: Largest) -> Largest:
        """|max − max| ≤ Σ over the window."""
        entries = rule.windows(state.value).shape[1]
        return self._plain(rule.run(state.value), entries * state.total)

    def mixing(self, rule: Mixing, state: Largest) -> Largest:
        """Gain own + (n − 1)·other times the error."""
        gain = rule.own + rule.other * (state.value.shape[rule.dim] - 1)
        return self._plain(rule.run(state.value), (gain * state.total).clamp(max=rule.cap))

    def combine(self, rule: Combine, states: Sequence[Largest]) -> Largest:
        """Errors add."""
        values = [s * x.value for s, x in zip(rule.signs, states, strict=True)]
        return self._plain(
            sum(values[1:], values[0]), torch.stack([x.total for x in states]).sum(0)
        )

    def concat(self, rule: Concat, states: Sequence[Largest]) -> Largest:
        """The larger error."""
        error = torch.stack([x.total for x in states]).amax(0)
        return self._plain(torch.cat([x.value for x in states], rule.dim), error)

    def crash(self, state: Largest, rate: float) -> Largest:
        """As u ← (1 − p) u + p C."""
        return replace(state, error=(1 - rate) * state.total + rate * state.size)


class Worst(Expected):
    """Fep = C Σ_l f_l K^{L−l} w^{(L+1)} Π_{l'>l} (N_l' − f_l') w^{(l')}, for f_l crashes."""

    def affine(self, rule: Affine, state: Largest) -> Largest:
        """The largest weight: f of them times C, N − f of them times the error."""
        one = torch.ones_like(state.value[:1])
        row = rule.power(one, 1).max()
        if rule.largest is None:
            return self._plain(rule.run(state.value), row * state.total)
        fan = rule.power(one, 0).max()
        struck = min(state.struck, fan.item())
        wrong = torch.maximum(state.size, state.error)
        error = rule.largest * (struck * wrong + (fan - struck) * state.error)
        return self._plain(rule.run(state.value), error)

    def crash(self, state: Largest, rate: float) -> Largest:
        """So many neurons are wrong by C."""
        return replace(state, error=state.total, struck=rate)
