"""Guaranteed bounds on the output error of a network whose neurons crash."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bozzetto.analysis.crash import papers
from bozzetto.analysis.crash.expected import ExpectedZonotope
from bozzetto.analysis.crash.moments import MomentDomain, Unit
from bozzetto.analysis.crash.network import Network, read_network
from bozzetto.analysis.crash.pathwise import expected_sum, largest_sum
from bozzetto.analysis.crash.rates import chosen_failures, chosen_rates, unit_shapes
from bozzetto.analysis.crash.sampled import Sampling, sampled_bound
from bozzetto.analysis.crash.subsets import few_crashes
from bozzetto.analysis.crash.walk import walk
from bozzetto.analysis.crash.worst import WorstZonotope
from bozzetto.analysis.crash.zonotope import TooLarge

Rates = float | Mapping[str, float]


@dataclass(frozen=True)
class CrashBound:
    """Upper bounds on |h̃ − h| per input and output, (b, *out); the error is the least of them.

    `expected` (crashes by chance) or `worst` (chosen by an adversary) is the elementwise minimum
    of `bounds`; the other is None. `sampled`, where asked for, is no guarantee: all its entries
    bound the expectation together with the stated confidence.
    """

    rates: Mapping[str, float]
    widths: Mapping[str, int]
    healthy: Tensor
    bounds: Mapping[str, Tensor]
    expected: Tensor | None = None
    worst: Tensor | None = None
    sampled: Tensor | None = None
    confidence: float | None = None

    def rows(self) -> list[dict[str, object]]:
        """One row a bound: its mean and largest value over inputs and outputs."""
        return [
            {"bound": name, "mean": value.mean().item(), "largest": value.max().item()}
            for name, value in {**self.bounds, "best": self.best}.items()
        ]

    @property
    def best(self) -> Tensor:
        """Whichever of `expected` and `worst` there is."""
        found = self.expected if self.worst is None else self.worst
        assert found is not None
        return found

    def figure(self, ax: Any) -> None:
        """The mean of every bound, in log scale."""
        rows = self.rows()
        ax.barh([str(row["bound"]) for row in rows], [row["mean"] for row in rows])
        ax.set_xscale("log")
        ax.set_xlabel("bound on the output's error")


def crash_bound(
    model: nn.Module,
    p: Rates | None = None,
    *,
    failures: int | Mapping[str, int] | None = None,
    x: Tensor,
    radius: float = 0.0,
    unit: Unit = "neuron",
    patterns: int = 4096,
    elements: int = 1 << 26,
    sampling: Sampling | None = None,
) -> CrashBound:
    """Bound the output's error on inputs x when neurons crash to zero.

    Args:
        model: a network that torch.fx can trace; it is not changed.
        p: probability that a neuron crashes, for all layers or by layer name; crashes are
            independent and the bound is on the expectation.
        failures: instead of p, how many neurons crash in each layer, whichever they are.
        x: inputs, (b, *s).
        radius: the bound holds for all inputs within ±radius of x, elementwise.
        unit: what crashes: single neurons, or whole channels (dimension 1).
        patterns: how many patterns of few crashes may be run exactly.
        elements: how many numbers the signed (zonotope) bounds may hold at once; beyond that they
            are left out of `bounds`.
        sampling: also draw patterns, for `sampled`.

    Raises:
        ValueError: for p outside [0, 1], failures beyond a layer's width, unknown layer names,
            and inputs that are none or not finite.
        NoSoundBound: names the first layer without a sound bound.
        TypeError: for models that cannot be traced.
    """
    if (p is None) == (failures is None):
        raise ValueError(f"crash_bound needs p or failures; got p={p!r}, failures={failures!r}")
    if not radius >= 0 or (p is None and (radius or sampling)):
        raise ValueError(f"radius >= 0 and sampling need p; got radius={radius}, p={p!r}")
    if radius and sampling:
        raise ValueError("sampling is for the inputs x themselves; it needs radius=0")
    if not len(x) or not x.isfinite().all():
        raise ValueError(f"crash_bound needs at least one input, all finite; got {len(x)}")
    network = read_network(model, x)
    shapes = unit_shapes(network, unit)
    widths = {name: shape.numel() for name, shape in shapes.items()}
    limits = Limits(unit, patterns, elements)
    with torch.no_grad():
        if p is None:
            assert failures is not None
            rates = chosen_failures(failures, widths, network.site_names())
            bounds = _worst(network, rates, limits)
            return CrashBound(rates, widths, network.value, bounds, worst=_least(bounds))
        rates = chosen_rates(p, list(widths), network.site_names())
        if radius:
            box = walk(network, MomentDomain(unit, radius), rates)
            bounds = {"moment": box.mean}
            return CrashBound(rates, widths, network.value, bounds, expected=_least(bounds))
        bounds, square = _expected(network, rates, shapes, limits)
        found = CrashBound(rates, widths, network.value, bounds, expected=_least(bounds))
        if sampling is None:
            return found
        drawn = sampled_bound(network, rates, shapes, square, sampling)
        drawn = torch.minimum(drawn, found.best)
        return replace(found, sampled=drawn, confidence=sampling.confidence)


@dataclass(frozen=True)
class Limits:
    """What crashes, and what a bound may spend."""

    unit: Unit
    patterns: int
    elements: int


def _least(bounds: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(bounds.values())).amin(0)


def _expected(
    network: Network, rates: Mapping[str, float], shapes: Mapping[str, torch.Size], limits: Limits
) -> tuple[dict[str, Tensor], Tensor]:
    """Bounds on the expectation, and on the root mean square, (b, *out)."""
    moments = walk(network, MomentDomain(limits.unit), rates)
    bounds = {
        "papers": _to_outputs(walk(network, papers.Expected(), rates).total, network.value),
        "absolute": expected_sum(network, rates),
        "moment": moments.mean,
    }
    square = moments.square
    signed = _by_halves(network, lambda part: _signed(part, rates, limits))
    if signed is not None:
        bounds["zonotope"], second = signed
        square = torch.minimum(square, second)
    sites = {name: shapes[name] for name in rates}
    found = few_crashes(network, rates, sites, limits.patterns)
    if found is not None:
        exact, some, more = found
        bounds["few"] = exact + torch.minimum(bounds["absolute"] * some, square * more**0.5)
    return bounds, square


def _signed(network: Network, rates: Mapping[str, float], limits: Limits) -> tuple[Tensor, Tensor]:
    domain = ExpectedZonotope(limits.unit, limits.elements)
    return domain.total(walk(network, domain, rates))


def _worst(network: Network, failures: Mapping[str, int], limits: Limits) -> dict[str, Tensor]:
    fep = walk(network, papers.Worst(), failures).total
    bounds = {
        "papers": _to_outputs(fep, network.value),
        "topf": largest_sum(network, failures, limits.unit),
    }

    def signed(part: Network) -> tuple[Tensor, Tensor]:
        domain = WorstZonotope(limits.unit, limits.elements)
        return domain.size(domain.settled(walk(part, domain, failures)))

    found = _by_halves(network, signed)
    if found is not None:
        bounds["zonotope"] = found[0]
    return bounds


def _to_outputs(v: Tensor, like: Tensor) -> Tensor:
    """(b,) as (b, *out)."""
    return v.reshape(-1, *[1] * (like.ndim - 1)).expand_as(like)


def _by_halves(
    network: Network, bound: Callable[[Network], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor] | None:
    """A bound computed for all inputs at once, or for halves of them; None if one is too large."""
    try:
        return bound(network)
    except TooLarge:
        if len(network.x) == 1:
            return None
        half = len(network.x) // 2
        parts = [_by_halves(network.part(cut), bound) for cut in (slice(half), slice(half, None))]
        if parts[0] is None or parts[1] is None:
            return None
        return torch.cat([parts[0][0], parts[1][0]]), torch.cat([parts[0][1], parts[1][1]])
