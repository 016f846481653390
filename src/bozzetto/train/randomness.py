"""Randomness: global generators and a loader's own, seeded for a run and put back afterwards."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor

from bozzetto.linalg import derive_seed

__all__ = ["Randomness"]


class Randomness:
    """Torch's generators of the CPU and the model's CUDA device, and those of a loader.

    A loader's are its attribute `generator`, its sampler's and those of a `loader` that it wraps:
    an epoch's seed comes from theirs and from the recipe's, so that the order of an epoch does not
    depend on those before it. A `set_epoch` of any of these is called with 0, 1, …
    """

    def __init__(self, seed: int, device: torch.device, loader: Iterable[Any]) -> None:
        self.seed, self.device = seed, device
        self.parts = [*_parts(loader)]
        found = [getattr(part, "generator", None) for part in self.parts]
        self.generators = list({id(g): g for g in found if isinstance(g, Generator)}.values())
        self.initial = [generator.initial_seed() for generator in self.generators]

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Every generator is afterwards as it was."""
        states = [generator.get_state() for generator in self.generators]
        cuda = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=cuda):
                yield
        finally:
            for generator, state in zip(self.generators, states, strict=True):
                generator.set_state(state)

    def begin(self, epoch: int) -> None:
        """Seed everything for an epoch (0 is the first)."""
        self._seed(derive_seed(self.seed, "train", epoch))
        for place, (generator, initial) in enumerate(
            zip(self.generators, self.initial, strict=True)
        ):
            generator.manual_seed(derive_seed(self.seed, "order", place, initial, epoch))
        for part in self.parts:
            if callable(set_epoch := getattr(part, "set_epoch", None)):
                set_epoch(epoch)

    def part(self, epoch: int, rank: int) -> None:
        """Let a process draw numbers of its own, after the loader's order was drawn; 0 goes on."""
        if rank:
            self._seed(derive_seed(self.seed, "process", rank, epoch))

    def _seed(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def state(self) -> list[Tensor]:
        """Of the global generators; the loader's are replayed from the start of the epoch."""
        cuda = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        return [torch.get_rng_state(), *cuda]

    def restore(self, state: list[Tensor]) -> None:
        """Take over a `state`."""
        torch.set_rng_state(state[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state[1], self.device)


def _parts(loader: Any) -> Iterator[Any]:
    """The loader, its sampler, and the same of what it wraps."""
    while loader is not None:
        yield from (loader, getattr(loader, "sampler", None))
        loader = getattr(loader, "loader", None)
