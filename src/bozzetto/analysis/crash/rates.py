"""Which layers crash and how often: the user's p or failures, checked against the network."""

from collections.abc import Mapping, Sequence

import torch

from bozzetto.analysis.crash.moments import Unit
from bozzetto.analysis.crash.network import Network


def unit_shapes(network: Network, unit: Unit) -> dict[str, torch.Size]:
    """What one pattern of crashes looks like at every call, broadcasting over its values."""
    if unit not in ("neuron", "channel"):
        raise ValueError(f"unit is 'neuron' or 'channel'; got {unit!r}")
    shapes = {step.name: step.value.shape[1:] for step in network.steps}
    if unit == "neuron":
        return shapes
    return {name: torch.Size([s[0], *[1] * (len(s) - 1)]) for name, s in shapes.items() if s}


def _by_site(
    value: float | Mapping[str, float], names: Sequence[str], default: Sequence[str]
) -> dict[str, float]:
    if not isinstance(value, Mapping):
        value = dict.fromkeys(default, value)
    if not value:
        raise ValueError(
            "no layer to crash: none was named, or the network has no activation before its output"
        )
    unknown = sorted(set(value) - set(names))
    if unknown:
        raise ValueError(f"no layers named {unknown}; the network has {list(names)}")
    return {name: value[name] for name in names if name in value}


def chosen_rates(
    p: float | Mapping[str, float], names: Sequence[str], default: Sequence[str]
) -> dict[str, float]:
    """Crash probability by site, in the order of the network.

    Raises:
        ValueError: for a probability outside [0, 1] or an unknown layer.
    """
    rates = _by_site(p, names, default)
    for name, rate in rates.items():
        if not 0 <= rate <= 1:
            raise ValueError(f"a crash probability lies in [0, 1]; got {rate} for {name!r}")
    return rates


def chosen_failures(
    failures: int | Mapping[str, int], widths: Mapping[str, int], default: Sequence[str]
) -> dict[str, int]:
    """Number of crashes by site, in the order of the network.

    Raises:
        ValueError: for a count that is not an integer in [0, width], or an unknown layer.
    """
    counts = _by_site(failures, list(widths), default)
    for name, count in counts.items():
        if count != int(count) or not 0 <= count <= widths[name]:
            raise ValueError(
                f"failures are integers from 0 to a layer's width; got {count} for {name!r}, "
                f"which has {widths[name]}"
            )
    return {name: int(count) for name, count in counts.items()}
