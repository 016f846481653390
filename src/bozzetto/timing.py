"""Timing several calls in turn, so that a busy machine hits all of them alike."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch

__all__ = ["Sample", "sample_clocks", "sample_in_turn", "with_threads"]

_SAMPLE = 2e-3  # seconds: shorter ones measure the clock and the scheduler


class Sample(NamedTuple):
    """Seconds of one call: on the wall's clock, and of this process' threads together."""

    wall: float
    process: float


def sample_in_turn(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    devices: Collection[torch.device] = (),
) -> dict[str, tuple[float, ...]]:
    """Seconds of one call on the wall's clock, a sample a round; see `sample_clocks`."""
    found = sample_clocks(calls, repeats, devices)
    return {name: tuple(sample.wall for sample in samples) for name, samples in found.items()}


def sample_clocks(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    devices: Collection[torch.device] = (),
) -> dict[str, list[Sample]]:
    """Both times of one call, a sample a round.

    Every round takes a sample of each, the next one first in every round, of as many calls as fill
    two milliseconds; two untimed calls go before.

    Args:
        calls: what to time, by name.
        repeats: rounds.
        devices: on which they work; accelerators are waited for.
    """

    def seconds(name: str, count: int) -> Sample:
        _wait(devices)
        wall, process = time.perf_counter(), time.process_time()
        for _ in range(count):
            calls[name]()
        _wait(devices)
        wall, process = time.perf_counter() - wall, time.process_time() - process
        return Sample(wall / count, process / count)

    names = list(calls)
    counts = {}
    for name in names:
        seconds(name, 1)
        counts[name] = max(1, math.ceil(_SAMPLE / max(seconds(name, 1).wall, 1e-7)))
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for turn in range(repeats):
        start = turn % max(1, len(names))
        for name in names[start:] + names[:start]:
            samples[name].append(seconds(name, counts[name]))
    return samples


def _wait(devices: Collection[torch.device]) -> None:
    """Until the accelerators have done what they were given."""
    for device in devices:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)


@contextmanager
def with_threads(threads: int | None) -> Iterator[None]:
    """That many threads within an operation of torch, as before afterwards; None leaves them."""
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)
