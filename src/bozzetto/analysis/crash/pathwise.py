"""|h̃ − h| ≤ Σ b_i g_i for every pattern b of crashes: absolute weights along every path."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bozzetto.analysis.crash.activations import Activation
from bozzetto.analysis.crash.moments import Unit
from bozzetto.analysis.crash.network import Network
from bozzetto.analysis.crash.rules import Affine, Combine, Concat, Maximum, Mixing
from bozzetto.analysis.crash.walk import Domain, walk


@dataclass(frozen=True)
class Path:
    """Healthy value and a bound on the error, (b, *s)."""

    value: Tensor
    error: Tensor


class Pathwise(Domain[Path]):
    """Linear in what the crashed neurons lose; `lost` collects that, site by site."""

    def __init__(self) -> None:
        self.lost: list[Tensor] = []

    def start(self, x: Tensor) -> Path:
        """No error."""
        return Path(x, torch.zeros_like(x))

    def affine(self, rule: Affine, state: Path) -> Path:
        """|A| e."""
        return Path(rule.run(state.value), rule.power(state.error, 1))

    def activate(self, rule: Activation, state: Path) -> Path:
        """K e."""
        return Path(rule.function(state.value), rule.lipschitz * state.error)

    def maximum(self, rule: Maximum, state: Path) -> Path:
        """The window's sum."""
        error = rule.windows(state.error).nan_to_num(neginf=0.0).sum(1)
        return Path(rule.run(state.value), error)

    def mixing(self, rule: Mixing, state: Path) -> Path:
        """own·e_i + other·Σ_{j≠i} e_j."""
        others = state.error.sum(rule.dim, keepdim=True) - state.error
        return Path(rule.run(state.value), rule.own * state.error + rule.other * others)

    def combine(self, rule: Combine, states: Sequence[Path]) -> Path:
        """Errors add."""
        value = [s * x.value for s, x in zip(rule.signs, states, strict=True)]
        error = [x.error for x in states]
        return Path(sum(value[1:], value[0]), sum(error[1:], error[0]))

    def concat(self, rule: Concat, states: Sequence[Path]) -> Path:
        """Side by side."""
        value, error = (
            torch.cat([getattr(x, n) for x in states], rule.dim) for n in ("value", "error")
        )
        return Path(value, error)

    def crash(self, state: Path, rate: float) -> Path:
        """As e + rate·|h|."""
        lost = (rate * state.value.abs()).requires_grad_()
        self.lost.append(lost)
        return Path(state.value, state.error + lost)


def expected_sum(network: Network, p: Mapping[str, float]) -> Tensor:
    """E Σ b_i g_i = Σ p_i g_i, (b, *out)."""
    with torch.no_grad():
        return walk(network, Pathwise(), p).error


@torch.enable_grad()
def largest_sum(network: Network, failures: Mapping[str, float], unit: Unit) -> Tensor:
    """The largest Σ b_i g_i over at most f crashes in each layer, (b, *out)."""
    domain = Pathwise()
    error = walk(network, domain, dict.fromkeys(failures, 1.0)).error
    error = error.reshape(len(error), -1)  # (b, m)
    error = error + 0 * sum(lost.sum() for lost in domain.lost)  # some may not reach the output
    most = torch.zeros_like(error)
    for i in range(error.shape[1]):
        gains = torch.autograd.grad(error[:, i].sum(), domain.lost, retain_graph=True)
        for gain, lost, f in zip(gains, domain.lost, failures.values(), strict=True):
            most[:, i] += _largest(gain * lost, f, unit)
    return most.reshape(network.value.shape).detach()


def _largest(gains: Tensor, f: float, unit: Unit) -> Tensor:
    """The sum of the f largest units' gains, (b, *s) -> (b,)."""
    whole = unit == "channel" and gains.ndim > 2
    each = gains.flatten(2).sum(2) if whole else gains.reshape(len(gains), -1)
    return each.topk(int(f), dim=1).values.sum(1)
