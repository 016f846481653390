"""A bound on the expected error that holds with a stated confidence, by drawing crashes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bozzetto.analysis.crash.faults import struck
from bozzetto.analysis.crash.network import Network
from bozzetto.analysis.crash.subsets import evaluate
from bozzetto.linalg import derive_seed


@dataclass(frozen=True)
class Sampling:
    """How many crash patterns to draw, and with what chance all bounds hold together."""

    patterns: int
    confidence: float
    seed: int

    def __post_init__(self) -> None:
        if self.patterns < 2 or not 0 < self.confidence < 1:
            raise ValueError(
                "sampling needs patterns >= 2 and 0 < confidence < 1; "
                f"got {self.patterns}, {self.confidence}"
            )


def sampled_bound(
    network: Network,
    rates: Mapping[str, float],
    shapes: Mapping[str, torch.Size],
    square: Tensor,
    sampling: Sampling,
) -> Tensor:
    """Upper bounds on E|h̃ − h|, (b, *out), that hold together with the given confidence.

    E|e| = E min(|e|, c) + E(|e| − c)₊. The first is bounded from n patterns by the empirical
    Bernstein inequality (Maurer, Pontil 2009, arXiv 0907.3740, theorem 4) for values in [0, c],
    with δ = (1 − confidence)/(b·out) each; the second by E e²/4c from a guaranteed second moment.
    c = s√(3(n−1)/28 ln(2/δ)) makes the two remainders equal; it is fixed before drawing.

    Args:
        network: healthy on b inputs.
        rates: crash probability by site.
        shapes: of the masks, by site.
        square: s, a guaranteed bound on (E e²)^½, (b, *out).
        sampling: how to draw.
    """
    n = sampling.patterns
    log = math.log(2 * square.numel() / (1 - sampling.confidence))
    clip = square * math.sqrt(3 * (n - 1) / (28 * log))
    total, squares = torch.zeros_like(square), torch.zeros_like(square)
    width = max(1, (1 << 13) // len(network.x))
    for start in range(0, n, width):
        seed = derive_seed(sampling.seed, "sampled", start)
        errors = _errors(network, rates, shapes, min(width, n - start), seed)
        errors = torch.minimum(errors, clip)
        total, squares = total + errors.sum(0), squares + (errors**2).sum(0)
    mean = total / n
    variance = ((squares - n * mean**2) / (n - 1)).clamp(min=0)
    noise = (2 * variance * log / n).sqrt() + 7 * clip * log / (3 * (n - 1))
    tail = torch.where(clip > 0, square**2 / (4 * clip), 0.0)
    return mean + noise + tail


def _errors(
    network: Network,
    rates: Mapping[str, float],
    shapes: Mapping[str, torch.Size],
    patterns: int,
    seed: int,
) -> Tensor:
    """|h̃ − h| of random patterns, (patterns, b, *out)."""
    x, b = network.x, len(network.x)
    generator = torch.Generator(x.device).manual_seed(seed)
    masks = {}
    for name, rate in rates.items():
        failed = struck(rate, patterns, *shapes[name], generator=generator, name=name)
        masks[name] = (~failed).to(x.dtype).repeat_interleave(b, 0)
    repeated = x.repeat(patterns, *[1] * (x.ndim - 1))
    output = evaluate(network, repeated, masks).unflatten(0, (patterns, b))
    return (output - network.value).abs()
