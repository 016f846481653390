"""Kinds of faults: what a failed neuron outputs, or what happens to a stored weight."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from bozzetto.linalg import derive_seed


def struck(p: float, *shape: int, generator: torch.Generator, name: str | int = "") -> Tensor:
    """Which of independent uniform draws fall below p, bool; those of a smaller p are among them.

    Draws of float32 are multiples of 2⁻²⁴. Those on the step of p are drawn further, from a stream
    of the generator's seed and the name, so that rates need not be such multiples.
    """
    coarse = torch.rand(shape, generator=generator, device=generator.device)
    whole = math.floor(p * 2**24)
    below, on = coarse < whole / 2**24, coarse == whole / 2**24
    if on.any():
        further = torch.Generator(generator.device)
        further.manual_seed(derive_seed(generator.initial_seed(), "further", name))
        fine = torch.rand(shape, generator=further, device=generator.device)
        below |= on & (fine < p * 2**24 - whole)
    return below


class NeuronFault(Protocol):
    """What failed neurons output."""

    def output(self, value: Tensor, failed: Tensor, generator: torch.Generator) -> Tensor:
        """Values (patterns, b, *s) with the failed ones (patterns, 1, *s) replaced."""
        ...


@runtime_checkable
class WeightFault(Protocol):
    """What happens to stored weights."""

    def weights(
        self, weight: Tensor, p: float, patterns: int, generator: torch.Generator
    ) -> Tensor:
        """Faulty copies of a weight, (patterns, *weight.shape), each entry hit with chance p."""
        ...


@dataclass(frozen=True)
class Crash:
    """A failed neuron outputs 0."""

    def output(self, value: Tensor, failed: Tensor, generator: torch.Generator) -> Tensor:
        """Zeros."""
        return value * ~failed


@dataclass(frozen=True)
class StuckAt:
    """A failed neuron outputs a constant."""

    value: float

    def output(self, value: Tensor, failed: Tensor, generator: torch.Generator) -> Tensor:
        """The constant."""
        return torch.where(failed, self.value, value)


@dataclass(frozen=True)
class Byzantine:
    """A failed neuron outputs anything within [low, high]: uniform, and new for every input."""

    low: float
    high: float

    def output(self, value: Tensor, failed: Tensor, generator: torch.Generator) -> Tensor:
        """Uniform values."""
        drawn = torch.rand(value.shape, generator=generator, dtype=value.dtype, device=value.device)
        return torch.where(failed, self.low + (self.high - self.low) * drawn, value)


@dataclass(frozen=True)
class DroppedConnections:
    """A connection transmits 0: each weight is lost with chance p; biases are no connections."""

    def weights(
        self, weight: Tensor, p: float, patterns: int, generator: torch.Generator
    ) -> Tensor:
        """Weights with zeros."""
        if weight.ndim < 2:
            return weight.expand(patterns, *weight.shape)
        return weight * ~struck(p, patterns, *weight.shape, generator=generator)


_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class BitFlips:
    """Each bit of a stored floating-point weight flips with chance p."""

    def weights(
        self, weight: Tensor, p: float, patterns: int, generator: torch.Generator
    ) -> Tensor:
        """Weights with flipped bits; some may be infinite or not a number."""
        word = _WORDS[weight.element_size()]
        bits = weight.contiguous().view(word).expand(patterns, *weight.shape).clone()
        for place in range(8 * weight.element_size()):
            flipped = struck(p, *bits.shape, generator=generator, name=place)
            bits ^= flipped.to(word) << place
        return bits.view(weight.dtype)
