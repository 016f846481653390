"""The contract of a sketch family."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from bozzetto.sketch import Sketch
from bozzetto.testing.requiring import normal, require, require_error, require_mean, same

_SIZES = ((1, 1), (7, 7), (11, 4), (12, 5), (13, 1), (16, 4))
_DRAWN_SIZES = ((9, 4), (8, 2))
_DRAWS = 1000
_BATCHES = ((), (3,), (2, 3), (0,), (2, 0, 3))


def check_sketch(family: type[Sketch]) -> None:
    """The contract of a sketch family, whose class is called as `family(n, k, seed)`.

    Checked: `down`, `up` and `forward` equal the dense matrix along any axis of any batch shape and
    are adjoint; a k outside 1 … n and an axis of the wrong length are errors; the map follows from
    the seed alone, is in no checkpoint, has nothing to train and survives a deepcopy; over 1000
    seeds E[UᵀU] = I and `variance()` hold within five standard errors of those draws.

    Raises:
        AssertionError: naming the first clause that is broken.
    """
    _check_range(family)
    _check_seed(family)
    for n, k in _SIZES:
        _check_stores_nothing(family(n, k, 1))
        sketch = family(n, k, 1).double()
        _check_dense(sketch)
        _check_adjoint(sketch)
        _check_lengths(sketch)
    for n, k in _DRAWN_SIZES:
        _check_moments(family, n, k)


def _check_range(family: type[Sketch]) -> None:
    for n, k in ((5, 0), (5, -1), (5, 6), (0, 0), (-2, -2)):
        require_error(lambda n=n, k=k: family(n, k, 0), f"k={k} for n={n}")


def _check_seed(family: type[Sketch]) -> None:
    state = torch.get_rng_state()
    first, again, other = (family(64, 16, seed).dense() for seed in (5, 5, 6))
    same(again, first, "one seed must give one map")
    require(bool((first != other).any()), "different seeds must give different maps")
    same(torch.get_rng_state(), state, "torch's global generator must be left alone")


def _check_stores_nothing(sketch: Sketch) -> None:
    stored = [*sketch.state_dict(), *(name for name, _ in sketch.named_parameters())]
    require(not stored, f"a seed needs no stored values; {sketch} stores {stored}")
    copied = copy.deepcopy(sketch)
    same(copied.dense(), sketch.dense(), f"a deepcopy of {sketch} must be the same map")
    x = normal(2, sketch.n).to(sketch.dense().dtype)
    same(copied.down(x), sketch.down(x), f"a deepcopy of {sketch} must work the same")


def _check_dense(sketch: Sketch) -> None:
    u = sketch.dense()  # (k, n)
    require(u.shape == (sketch.k, sketch.n), f"dense of {sketch} has shape {tuple(u.shape)}")
    for batch in _BATCHES:
        for dim in range(-len(batch) - 1, len(batch) + 1):
            _check_along(sketch.down, u, batch, dim, f"down of {sketch}")
            _check_along(sketch.up, u.T, batch, dim, f"up of {sketch}")
    x = normal(3, sketch.n)
    for name, y in (("forward", sketch(x)), ("down", sketch.down(x)), ("up", sketch.up(x @ u.T))):
        expected = x @ u.T @ u if name == "up" else x @ u.T
        same(y, expected, f"{name} of {sketch} must take the last axis by default", 1e-10)


def _check_along(
    apply: Callable[[Tensor, int], Tensor],
    matrix: Tensor,
    batch: tuple[int, ...],
    dim: int,
    what: str,
) -> None:
    x = normal(*batch, matrix.shape[1]).movedim(-1, dim)
    expected = (x.movedim(dim, -1) @ matrix.T).movedim(-1, dim)
    same(
        apply(x, dim), expected, f"{what} differs from dense on {tuple(x.shape)}, axis {dim}", 1e-10
    )


def _check_adjoint(sketch: Sketch) -> None:
    x, y = normal(4, sketch.n), normal(4, sketch.k)
    left, right = (sketch.down(x) * y).sum(-1), (x * sketch.up(y)).sum(-1)
    same(left, right, f"<Ux, y> = <x, Uᵀy> fails for {sketch}", 1e-10)


def _check_lengths(sketch: Sketch) -> None:
    n, k = sketch.n, sketch.k
    for length in {1, n - 1, n + 1} - {n}:
        require_error(lambda s=length: sketch.down(normal(2, s)), f"down of {length} for n={n}")
    for length in {1, k - 1, k + 1} - {k}:
        require_error(lambda s=length: sketch.up(normal(2, s)), f"up of {length} for k={k}")


def _check_moments(family: type[Sketch], n: int, k: int) -> None:
    dense = (family(n, k, seed).dense().double() for seed in range(_DRAWS))
    deviations = torch.stack([u.T @ u for u in dense]) - torch.eye(n, dtype=torch.float64)
    require_mean(deviations, 0.0, f"E[UᵀU] = I for n={n}, k={k}")
    errors = deviations.square().sum((1, 2)) / n  # ‖(UᵀU − I)v‖² / ‖v‖², averaged over v
    require_mean(errors, family(n, k, 0).variance(), f"variance() for n={n}, k={k}")
