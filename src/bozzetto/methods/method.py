"""The contract of a method: a way to write a linear map with fewer numbers."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from bozzetto.linalg import seeded
from bozzetto.maps import LinearMap
from bozzetto.moments import WIDE, Diagonal, Full, Metric, SketchedMoment, metric_of
from bozzetto.ops import Conv, Lookup
from bozzetto.stats import Stats

INPUT_DAMPING = 1e-3  # of the mean eigenvalue: directions that calibration barely saw keep a price
OUTPUT_DAMPING = 0.1


@dataclass(frozen=True)
class Objective:
    """What every method minimises for a layer: tr(G Δ C Δᵀ), Δ the change of the weight.

    C is the second moment of the input patches, centred where a bias can absorb the mean; G that of
    the output's gradient (Martens and Grosse 2015; for convolutions Grosse and Martens 2016).
    Both are damped by a fraction of their mean eigenvalue. Without stats both are the identity.
    """

    map: LinearMap
    stats: Stats | None = None

    @cached_property
    def w(self) -> Tensor:
        """The map's weight, (g, m, d), float64."""
        return self.map.matrix()

    @cached_property
    def input_metric(self) -> Metric | None:
        """C, or None for the identity."""
        if self.stats is None:
            return None
        c, mean = self.stats.moment, self.stats.mean
        if self.map.bias is None or mean is None:
            return metric_of(c, INPUT_DAMPING)
        if isinstance(c, SketchedMoment):
            return metric_of(c.centred(mean), INPUT_DAMPING)
        return metric_of(c - mean.unsqueeze(-1) * mean.unsqueeze(-2), INPUT_DAMPING, c)

    @cached_property
    def output_metric(self) -> Metric | None:
        """G, or None for the identity."""
        if self.stats is None or self.stats.gradient is None:
            return None
        return metric_of(self.stats.gradient, OUTPUT_DAMPING)

    @property
    def moment(self) -> Tensor | None:
        """C: (g, d, d), for look-ups (d,); None is the identity.

        Raises:
            ValueError: for a layer too wide to have it whole.
        """
        return _whole(self.input_metric)

    @property
    def gradient(self) -> Tensor | None:
        """G: (g, m, m), or None for the identity; raises as `moment`."""
        return _whole(self.output_metric)

    def whiten(self, change: Tensor) -> Tensor:
        """Kᵀ Δ L: its squared norm is the objective; (g, m, d)."""
        return self.whiten_output(self.whiten_input(change))

    def whiten_input(self, a: Tensor) -> Tensor:
        """A L for A: (g, r, d), L Lᵀ = C."""
        return a if self.input_metric is None else self.input_metric.whiten(a)

    def whiten_output(self, b: Tensor) -> Tensor:
        """Kᵀ B for B: (g, m, r), K Kᵀ = G."""
        return b if self.output_metric is None else self.output_metric.whiten(b.mT).mT

    def unwhiten_input(self, a: Tensor) -> Tensor:
        """A L⁻¹ for A: (g, r, d), L Lᵀ = C."""
        return a if self.input_metric is None else self.input_metric.unwhiten(a)

    def unwhiten_output(self, b: Tensor) -> Tensor:
        """K⁻ᵀ B for B: (g, m, r)."""
        return b if self.output_metric is None else self.output_metric.unwhiten(b.mT).mT

    def slope(self, change: Tensor) -> Tensor:
        """G Δ C, half the gradient of the objective at a change of the weight (g, m, d)."""
        c, g = self.input_metric, self.output_metric
        change = change if c is None else c.times(change)
        return change if g is None else g.times(change.mT).mT

    def error(self, change: Tensor) -> float:
        """The objective at a change of the weight (g, m, d)."""
        return float((change * self.slope(change)).sum())

    @cached_property
    def energy(self) -> float:
        """The objective at Δ = W: what dropping the layer costs."""
        return self.error(self.w)

    def shift_bias_(self, target: nn.Parameter | None, weight: Tensor) -> None:
        """Set a layer's bias to b + (W − Ŵ)μ, for the applied weight Ŵ (g, m, d)."""
        if target is None or self.map.bias is None:
            return
        bias = self.map.bias.detach().double().cpu()
        if self.stats is not None and self.stats.mean is not None:
            bias = bias + ((self.w - weight) @ self.stats.mean.unsqueeze(-1)).flatten()
        with torch.no_grad():
            target.copy_(bias)


def _whole(metric: Metric | None) -> Tensor | None:
    if metric is None or isinstance(metric, Full | Diagonal):
        return None if metric is None else metric.c
    raise ValueError(f"a whole moment is kept up to a width of {WIDE}; this layer is wider")


def too_wide(m: LinearMap) -> bool:
    """Whether a side of the map is too wide for a whole moment."""
    return m.block[0] > WIDE or (m.block[1] > WIDE and not isinstance(m.op, Lookup))


@dataclass(frozen=True)
class Method(ABC):
    """A way to write a linear map with fewer numbers; instances are frozen dataclasses of options.

    `size` is the one number that trades values for quality.

    Attributes:
        needs_moments: whether fitting needs the whole moments, which very wide layers do not have.
        recovers: whether fitting a weight that a layer of that size applies finds it exactly.
        random: whether the error depends on the seed; `errors` is then that of one draw.
    """

    needs_moments: ClassVar[bool] = True
    recovers: ClassVar[bool] = True
    random: ClassVar[bool] = False

    def forms(self, objective: Objective) -> "list[Form]":
        """What a layer can become: all of `sizes`, of which a plan leaves out what never pays."""
        sizes = self.sizes(objective.map)
        errors = self.errors(objective, sizes)
        return [Form(self, size, error) for size, error in zip(sizes, errors, strict=True)]

    def options(self) -> dict[str, Any]:
        """The options that are not the defaults."""
        given = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name: value for name, (value, default) in given.items() if value != default}

    @abstractmethod
    def values(self, m: LinearMap, size: int) -> int:
        """Weight values at that size, over all groups; the dense number where it does not apply."""

    def most(self, m: LinearMap, keep: float = 1.0) -> int:
        """The largest size with fewer values than the dense weight, and at most `keep` of them."""
        dense = m.weight.numel()
        limit = min(dense - 1, int(keep * dense))
        return bisect_right(range(1, dense), limit, key=lambda size: self.values(m, size))

    def sizes(self, m: LinearMap) -> list[int]:
        """Sizes worth considering, ascending, each with fewer values than the dense weight."""
        return spread_sizes(self.most(m))

    @abstractmethod
    def build(self, m: LinearMap, size: int, seed: int) -> nn.Module:
        """A layer of that size with fresh weights and the dense layer's output variance."""

    @abstractmethod
    def fit_(self, layer: nn.Module, objective: Objective) -> None:
        """Set the layer to approximate the objective's map."""

    def bias(self, layer: nn.Module) -> nn.Parameter | None:
        """The layer's bias: its own, or that of its last part."""
        while isinstance(layer, nn.Sequential):
            layer = layer[-1]
        return cast(nn.Parameter | None, layer.bias)

    @abstractmethod
    def weight(self, layer: nn.Module, m: LinearMap) -> Tensor:
        """The dense weight that the layer applies, (g, m, d), float64 on the CPU."""

    @abstractmethod
    def errors(self, objective: Objective, sizes: Sequence[int]) -> list[float]:
        """The objective that `fit_` reaches at every size, or a little more."""


def fitted_errors(method: Method, objective: Objective, sizes: Sequence[int]) -> list[float]:
    """The objective after a fit at every size, for the one draw of seed 0."""
    m, found = objective.map, []
    for size in sizes:
        with seeded(0, m.weight.device):
            layer = method.build(m, size, seed=0)
        method.fit_(layer, objective)
        found.append(objective.error(objective.w - method.weight(layer, m)))
    return found


class Form(NamedTuple):
    """One way to write a layer: a method with its options set, a size and the objective there."""

    method: Method
    size: int
    error: float


def fresh_variance(m: LinearMap) -> float:
    """Of fresh weights: the mean square of those they stand for, on the meta device torch's."""
    if m.weight.is_meta:
        return torch_variance(m)
    square = float(m.weight.detach().double().square().mean())
    if isinstance(m.op, Lookup) and m.op.padding_idx is not None:  # whose row is zero
        square *= m.inputs / max(1, m.inputs - 1)
    return square


def torch_variance(m: LinearMap) -> float:
    """Of the weights that torch draws for the dense layer."""
    if isinstance(m.op, Lookup):
        return 1.0
    transposed = isinstance(m.op, Conv) and m.op.transposed
    rows, d = m.block
    fan_in = d // m.weight.shape[1] * rows if transposed else d  # torch's, of the weight as stored
    return 1 / (3 * fan_in)


def fresh_bias_(bias: nn.Parameter | None, m: LinearMap) -> None:
    """Draw a bias with the mean square of the map's, on the meta device with torch's."""
    if bias is not None and m.bias is not None:
        meta = m.bias.is_meta
        square = torch_variance(m) if meta else float(m.bias.detach().double().square().mean())
        bound = (3 * square) ** 0.5
        nn.init.uniform_(bias, -bound, bound)


def fresh_(part: nn.Module, variance: float) -> None:
    """Draw a part's weights uniformly with that variance."""
    bound = (3 * variance) ** 0.5
    nn.init.uniform_(cast(Tensor, part.weight), -bound, bound)


def spread_sizes(most: int, count: int = 24) -> list[int]:
    """About `count` sizes from 1 to most, denser where they are small."""
    if most < 1:
        return []
    if most <= count:
        return list(range(1, most + 1))
    ratio = most ** (1 / (count - 1))
    return sorted({min(most, max(1, round(ratio**i))) for i in range(count)})
