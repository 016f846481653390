"""What the contracts are written in: conditions that hold under `python -O` too, and draws."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.testing import assert_close

from bozzetto.linalg import random_normal


def require(condition: bool, message: str) -> None:
    """Raise AssertionError with the message unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def require_error(call: Callable[[], object], what: str) -> None:
    """Raise AssertionError unless the call raises ValueError."""
    try:
        call()
    except ValueError:
        return
    raise AssertionError(f"{what} must raise ValueError; it was accepted")


def same(got: Tensor, expected: Tensor, what: str, tolerance: float = 0.0) -> None:
    """Raise AssertionError unless the tensors agree, to a tolerance relative to the largest."""
    largest = float(expected.detach().abs().max()) if expected.numel() else 0.0
    room = tolerance * max(1.0, largest)
    assert_close(got, expected, rtol=tolerance, atol=room, msg=lambda m: f"{what}\n{m}")


def require_mean(draws: Tensor, expected: Tensor | float, what: str) -> None:
    """Raise AssertionError unless the mean of the draws, (count, ...), is the expected one.

    To five of the standard errors that the draws themselves show.
    """
    error = (draws.mean(0) - expected).abs()
    bound = 5 * draws.std(0) / len(draws) ** 0.5 + 1e-5  # the last for single-precision entries
    worst = (error - bound).argmax()
    require(
        bool((error <= bound).all()),
        f"{what} fails: off by {error.flatten()[worst]:.3g}, five standard errors are "
        f"{bound.flatten()[worst]:.3g}",
    )


def normal(*shape: int, seed: int = 11) -> Tensor:
    """Standard normal draws in float64."""
    return random_normal(seed, torch.Size(shape).numel()).view(shape)
