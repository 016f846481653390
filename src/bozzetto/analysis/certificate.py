"""The certificate: what each changed layer can do wrong at most, beside what it does wrong."""

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bozzetto.analysis.unbiased import relative_error
from bozzetto.batches import Batch, call, device_of, first_input, to
from bozzetto.expand import expand
from bozzetto.maps import LinearMap
from bozzetto.methods import make_method
from bozzetto.ops import Conv, Lookup
from bozzetto.plan import Choice, Plan
from bozzetto.sites import find_sites

__all__ = ["Certificate", "LayerBound", "certificate"]

_PART = 1 << 22  # patch values held at once


@dataclass(frozen=True)
class LayerBound:
    """The error of one layer on its inputs in the target network, relative to the output.

    Relative is always to the root mean square of the dense layer's output without its bias.

    Attributes:
        layer: path in the expanded model.
        method: of its choice in the plan.
        size: of its choice.
        gain: ‖W − Ŵ‖₂; of several groups the largest. For look-ups the largest change of a row.
        offset: ‖(W − Ŵ)μ + b − b̂‖, μ the mean input patch. On every input patch x whatever,
            the layer's error is at most gain · ‖x − μ‖ + offset.
        bound: what follows from gain and offset for the relative error on the batches.
        measured: the relative error on the batches, from running both layers on them.
        unbiased: expected relative error of the paper's unbiased estimate of the same size, for
            layers that are sketches; see `bozzetto.analysis.unbiased`.
    """

    layer: str
    method: str
    size: int
    gain: float
    offset: float
    bound: float
    measured: float
    unbiased: float | None = None


@dataclass(frozen=True)
class Certificate:
    """Bounds and measured errors of all changed layers."""

    layers: tuple[LayerBound, ...]

    def rows(self) -> list[dict[str, object]]:
        """One row a layer."""
        return [asdict(layer) for layer in self.layers]

    def figure(self, ax: Any) -> None:
        """Measured error and bound of each layer, joined by a line; 1 is dropping the layer."""
        places = range(len(self.layers))
        bounds, errors = [x.bound for x in self.layers], [x.measured for x in self.layers]
        ax.hlines(places, errors, bounds, color="C0", alpha=0.4, linewidth=2)
        ax.plot(errors, places, "o", color="C0", label="measured")
        ax.plot(bounds, places, "|", color="C1", markersize=14, markeredgewidth=2, label="bound")
        ax.set_yticks(places, [x.layer or "(the model)" for x in self.layers])
        ax.invert_yaxis()
        ax.margins(y=0.5 / max(len(self.layers), 1) + 0.05)
        ax.set_xlim(left=0)
        ax.set_xlabel("relative error of the layer's output")
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def certificate(
    model: nn.Module, small: nn.Module, plan: Plan, batches: Iterable[Batch]
) -> Certificate:
    """Bound and measure the error of every layer that a plan changed.

    Both layers meet the inputs that the dense one has in the target network. They are compared in
    float64 on the CPU, so the error is that of the approximation, not of rounding.

    The bound: y − ŷ = (W − Ŵ)(x − μ) + offset, and the first term has mean zero, so the mean square
    is at most Σ_g ‖W_g − Ŵ_g‖₂² E‖x_g − μ_g‖² + ‖offset‖². For look-ups it is the largest change
    of a row. It needs of the data μ and E‖x‖² only, and holds for any weights of the small
    network, tuned or not.

    Args:
        model: the target; not changed.
        small: a network of that plan; not changed.
        plan: that made it.
        batches: see `bozzetto.batches`; one pass.

    Raises:
        ValueError: if the plan is for another model, there are no batches, a changed layer is
            never reached or one of its inputs is not finite.
    """
    expanded = expand(model, list(plan.choices)).eval()
    meters = list(_meters(expanded, small, plan))
    modules = dict(expanded.named_modules(remove_duplicate=False))
    handles = [
        modules[path].register_forward_hook(meter.hook, with_kwargs=True)
        for meter in meters
        for path in meter.paths
    ]
    number = 0
    try:
        with torch.no_grad():
            for batch in batches:
                call(expanded, to(batch, device_of(expanded)))
                number += 1
    finally:
        for handle in handles:
            handle.remove()
    if not number:
        raise ValueError("a certificate needs at least one batch; got none")
    with torch.no_grad():
        return Certificate(tuple(meter.result() for meter in meters))


@dataclass
class _Meter:
    """One layer, dense and changed, with its running sums; float64 on the CPU."""

    path: str
    paths: tuple[str, ...]
    choice: Choice
    map: LinearMap
    dense: nn.Module
    small: nn.Module
    shift: Tensor | None = None  # b − b̂, (m,)
    count: int = 0  # output positions
    error: float = 0.0
    signal: Tensor | float = 0.0  # (g,)
    sums: Tensor | float = 0.0  # (g, d)
    squares: Tensor | float = 0.0  # (g, d)

    def hook(
        self, _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], __: Tensor
    ) -> None:
        """Take the input of one call."""
        x = first_input(args, kwargs).detach().cpu()
        x = x.double() if x.is_floating_point() else x
        dense = self._rows(self.dense(x))
        self.error += float((dense - self._rows(self.small(x))).square().sum())
        pure = dense if self.map.bias is None else dense - self.map.bias.detach().double().cpu()
        energies = pure.square().unflatten(-1, (self.map.op.groups, -1)).sum((0, -1))
        self.signal, self.count = self.signal + energies, self.count + len(dense)
        if not bool(energies.isfinite().all()):
            raise ValueError(f"layer {self.path!r} needs finite inputs; one has NaN or infinity")
        if not isinstance(self.map.op, Lookup):
            self._add_moments(x)

    def _rows(self, y: Tensor) -> Tensor:
        """Output positions by channels, (b, m)."""
        return y.movedim(self.map.op.dim, -1).flatten(0, -2)

    def _add_moments(self, x: Tensor) -> None:
        if self.shift is None:
            zero = torch.zeros_like(x)
            self.shift = (self._rows(self.dense(zero)) - self._rows(self.small(zero)))[0]
        for rows in _patches(self.map, x):  # (g, b, d)
            self.sums = self.sums + rows.sum(1)
            self.squares = self.squares + rows.square().sum(1)

    def result(self) -> LayerBound:
        if not self.count:
            raise ValueError(f"the batches need to reach every changed layer; not {self.path!r}")
        signal = float(torch.as_tensor(self.signal).sum() / self.count)
        gain, offset, bound = self._row_bound() if self.shift is None else self._bound(self.shift)
        return LayerBound(
            self.path,
            self.choice.method,
            self.choice.size,
            gain,
            offset,
            _root_of_ratio(bound, signal),
            _root_of_ratio(self.error / self.count, signal),
            self._unbiased(),
        )

    def _bound(self, shift: Tensor) -> tuple[float, float, float]:
        """Gain, offset and the bound of the mean square error, from the weights."""
        method = make_method(self.choice.method, self.choice.options)
        change = self.map.matrix() - method.weight(self.small, self.map)  # (g, m, d)
        gains = torch.linalg.matrix_norm(change, 2)  # (g,)
        mean = torch.as_tensor(self.sums) / self.count
        variances = torch.as_tensor(self.squares) / self.count - mean.square()
        offset = (change @ mean.unsqueeze(-1)).flatten() + shift
        spread = gains.square() * variances.sum(-1).clamp_min(0)
        return (
            float(gains.max()),
            float(offset.norm()),
            float(spread.sum() + offset.square().sum()),
        )

    def _row_bound(self) -> tuple[float, float, float]:
        """The same for a look-up: every row that can be looked up, from looking all up."""
        rows = torch.arange(self.map.inputs)
        gain = float((self.dense(rows) - self.small(rows)).norm(dim=-1).max())
        return gain, 0.0, gain**2

    def _unbiased(self) -> float | None:
        if self.choice.method != "sketched" or self.shift is None:
            return None
        taps = math.prod(self.map.op.taps) if isinstance(self.map.op, Conv) else 1
        return relative_error(
            self.map.matrix(),
            torch.as_tensor(self.squares),
            torch.as_tensor(self.signal),
            k=self.choice.size,
            terms=self.choice.options.get("terms", 1),
            taps=taps,
        )


def _meters(expanded: nn.Module, small: nn.Module, plan: Plan) -> Iterator[_Meter]:
    """Of every changed map, and of the transposes that share its weight."""
    sites, _ = find_sites(expanded)
    for path, choice in plan.choices.items():
        if path not in sites:
            raise ValueError(f"the plan is for another model: it has no layer {path!r}")
        site = sites[path]
        yield _meter((path, *site.aliases), choice, site.map, expanded, small)
        for other, transpose in site.transposed:
            yield _meter((other,), choice, transpose, expanded, small)


def _meter(
    paths: tuple[str, ...], choice: Choice, m: LinearMap, expanded: nn.Module, small: nn.Module
) -> _Meter:
    def exact(model: nn.Module) -> nn.Module:
        return copy.deepcopy(model.get_submodule(paths[0])).eval().cpu().double()

    try:
        return _Meter(paths[0], paths, choice, m, exact(expanded), exact(small))
    except AttributeError as error:
        raise ValueError(f"the small network is of another plan: {error}") from error


def _patches(m: LinearMap, x: Tensor) -> Iterator[Tensor]:
    """The input patches (g, b, d), in pieces that fit in memory."""
    if isinstance(m.op, Conv):
        x = x if x.ndim == m.op.spatial + 2 else x.unsqueeze(0)
        taps = math.prod(m.op.taps)
        yield from map(m.op.patches, x.split(max(1, _PART // max(1, x[0].numel() * taps))))
    else:
        yield m.op.patches(x)


def _root_of_ratio(square: float, of: float) -> float:
    """A relative error; infinite where there is an error and no signal."""
    if of == 0:
        return 0.0 if square == 0 else math.inf
    return (square / of) ** 0.5
