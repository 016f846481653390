"""Schedules: what multiplies the learning rate at every step; pure functions, so they resume."""

import math
from collections.abc import Callable

__all__ = ["SCHEDULES", "rate_factor"]

_DROPS = (1 / 2, 3 / 4)  # of the steps, as in He et al. 2015
_START, _END = 1 / 25, 1e-4  # of one cycle's highest rate, and of its first; as torch's OneCycleLR


def rate_factor(name: str, step: int, steps: int | None, warmup: float) -> float:
    """Factor of the learning rate at step 0, 1, … of `steps` (None: how many is not known).

    Raises:
        ValueError: if the number of steps is needed and not known.
    """
    if steps is None:
        if name == "constant" and warmup == 0:
            return 1.0
        raise ValueError(
            f"schedule {name!r} with warmup {warmup} needs the number of steps, so a loader with a "
            "length; this one has none: use schedule='constant' and warmup=0"
        )
    return SCHEDULES[name](step, steps, warmup)


def _after_warmup(factor: Callable[[float], float]) -> Callable[[int, int, float], float]:
    """A linear rise to 1, then `factor` of the share of the remaining steps that is done."""

    def schedule(step: int, steps: int, warmup: float) -> float:
        rise = min(round(warmup * steps), steps - 1)
        return (step + 1) / (rise + 1) if step < rise else factor((step - rise) / (steps - rise))

    return schedule


def _cosine(done: float) -> float:
    """Loshchilov and Hutter 2017, without restarts."""
    return 0.5 + 0.5 * math.cos(math.pi * done)


def _step(done: float) -> float:
    return 0.1 ** sum(done >= drop for drop in _DROPS)


def _one_cycle(step: int, steps: int, warmup: float) -> float:
    """Smith and Topin 2017, with cosines; the momentum stays as it is."""
    peak, last, low = max(warmup * steps - 1, 0), steps - 1, _START * _END
    if step <= peak:
        return 1 + (_START - 1) * _cosine(step / peak if peak else 1)
    return low + (1 - low) * _cosine((step - peak) / (last - peak))


# Each: (step, steps, warmup) -> factor.
SCHEDULES: dict[str, Callable[[int, int, float], float]] = {
    "constant": _after_warmup(lambda done: 1.0),
    "cosine": _after_warmup(_cosine),
    "step": _after_warmup(_step),
    "onecycle": _one_cycle,
}
