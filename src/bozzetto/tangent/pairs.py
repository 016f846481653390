"""Kernels block by block over pairs of inputs, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


def blocks(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(n)."""
    if size < 1:
        raise ValueError(f"a block needs at least one input; got {size}")
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _as_is(x: Tensor) -> Tensor:
    return x


def by_blocks(
    kernel: Callable[[Any, Any], Tensor],
    x: Tensor,
    x2: Tensor | None,
    block: int,
    progress: Callable[[float], None] | None = None,
    *,
    prepare: Callable[[Tensor], Any] = _as_is,
) -> Tensor:
    """kernel(x, x2) for all pairs: (N, N', ...), at most block × block of them at a time.

    With x2 = None the kernel is symmetric, and each block off the diagonal is computed once.
    `progress` receives the fraction done. `kernel` is given what `prepare` makes of the inputs of
    two blocks, once for each row of blocks.

    Raises:
        ValueError: without inputs, or for a block of none.
    """
    right = x if x2 is None else x2
    result: Tensor | None = None
    done = 0
    for rows in blocks(len(x), block):
        first = prepare(x[rows])
        for columns in blocks(len(right), block):
            done += (rows.stop - rows.start) * (columns.stop - columns.start)
            if x2 is None and columns.start < rows.start:
                continue
            own = x2 is None and columns == rows
            value = kernel(first, first if own else prepare(right[columns]))
            if result is None:
                result = value.new_empty(len(x), len(right), *value.shape[2:])
            result[rows, columns] = value
            if x2 is None and not own:
                result[columns, rows] = _swap(value)
            if progress is not None:
                progress(done / (len(x) * len(right)))
    if result is None:
        raise ValueError(f"a kernel needs at least one input; got {len(x)} and {len(right)}")
    return result


def _swap(value: Tensor) -> Tensor:
    """The kernel of (y, x) from that of (x, y)."""
    flipped = value.transpose(0, 1)
    return flipped.mT if flipped.ndim == 4 else flipped
