"""The few-crash part of an expectation, exactly: every pattern of at most k crashed neurons."""

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bozzetto.analysis.crash.activations import Activation
from bozzetto.analysis.crash.network import Network
from bozzetto.analysis.crash.rules import Affine, Combine, Concat, Maximum, Mixing

_ROWS = 1 << 13  # rows of one batch of patterns × inputs


def evaluate(network: Network, x: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
    """The output when each named site is multiplied by its mask; x and masks are (rows, *s)."""
    values = {-1: x}
    for at, step in enumerate(network.steps[: network.output + 1]):
        inputs = [values[source] for source in step.inputs]
        match step.rule:
            case Combine(signs):
                terms = [sign * value for sign, value in zip(signs, inputs, strict=True)]
                value = sum(terms[1:], terms[0])
            case Concat(dim):
                value = torch.cat(inputs, dim)
            case Activation():
                value = step.rule.function(inputs[0])
            case Affine() | Maximum() | Mixing():
                value = step.rule.run(inputs[0])
        values[at] = value * masks[step.name] if step.name in masks else value
    return values[network.output]


def order_within(neurons: int, patterns: int) -> int:
    """The largest k for which all crashes of at most k neurons are within `patterns`."""
    k, count = 0, 1
    while k < neurons and count + math.comb(neurons, k + 1) <= patterns:
        k += 1
        count += math.comb(neurons, k)
    return k


def patterns_up_to(neurons: int, k: int) -> Tensor:
    """All masks with at most k zeros, bool, (patterns, neurons); True survives."""
    alive = torch.ones(sum(math.comb(neurons, j) for j in range(k + 1)), neurons, dtype=torch.bool)
    subsets = itertools.chain.from_iterable(
        itertools.combinations(range(neurons), j) for j in range(k + 1)
    )
    for row, subset in enumerate(subsets):
        alive[row, list(subset)] = False
    return alive


def crash_errors(network: Network, alive: Tensor, shapes: Mapping[str, torch.Size]) -> Tensor:
    """|h̃ − h| at the output for every pattern and input, (patterns, b, *out).

    Args:
        network: healthy on b inputs.
        alive: (patterns, units), the units of all sites one after another.
        shapes: what a mask of each site looks like, broadcasting over its values (*s).
    """
    b, errors = len(network.x), []
    for chunk in alive.split(max(1, _ROWS // b)):
        parts = chunk.to(network.x).split([s.numel() for s in shapes.values()], 1)
        masks = {
            name: part.repeat_interleave(b, 0).reshape(-1, *shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
        x = network.x.repeat(len(chunk), *[1] * (network.x.ndim - 1))
        output = evaluate(network, x, masks).unflatten(0, (len(chunk), b))
        errors.append((output - network.value).abs())
    return torch.cat(errors)


def crashes_beyond(rates: Tensor, k: int) -> tuple[float, float]:
    """P(at least k crashes) and P(more than k) for independent rates (units,)."""
    chance = torch.zeros(k + 2, dtype=torch.float64)  # of 0 … k crashes, then of more
    chance[0] = 1.0
    for rate in rates.tolist():
        moved = chance * rate
        moved[-2] = moved[-2] + moved[-1]
        chance = chance * (1 - rate)
        chance[1:] += moved[:-1]
    more = chance[-1].item()
    return more + chance[-2].item(), more


def few_crashes(
    network: Network, p: Mapping[str, float], shapes: Mapping[str, torch.Size], patterns: int
) -> tuple[Tensor, float, float] | None:
    """E[|h̃ − h|; at most k crashes], (b, *out), with P(at least k) and P(more than k).

    k is as large as `patterns` allows; None where not even k = 1 fits.
    """
    rates = torch.cat(
        [torch.full((s.numel(),), p[n], dtype=torch.float64) for n, s in shapes.items()]
    )
    k = order_within(len(rates), patterns)
    if k == 0:
        return None
    alive = patterns_up_to(len(rates), k)
    log = torch.where(alive, (1 - rates).log(), rates.log()).sum(1)
    errors = crash_errors(network, alive, shapes)
    exact = torch.einsum("p,p...->...", log.exp().to(errors), errors)
    return exact, *crashes_beyond(rates, k)
