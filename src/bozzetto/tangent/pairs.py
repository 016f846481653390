"""Kernels block by block over pairs of inputs, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

PairKernel = Callable[[Tensor, Tensor], Tensor]


def blocks(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(n)."""
    if size < 1:
        raise ValueError(f"a block needs at least one input; got {size}")
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def by_blocks(
    kernel: PairKernel,
    x: Tensor,
    x2: Tensor | None,
    block: int,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """kernel(x, x2) for all pairs: (N, N', ...), at most block × block of them at a time.

    With x2 = None the kernel is symmetric, and each block off the diagonal is computed once.
    `progress` receives the fraction done.
    """
    right = x if x2 is None else x2
    result: Tensor | None = None
    done = 0
    for rows in blocks(len(x), block):
        for columns in blocks(len(right), block):
            if x2 is not None or columns.start >= rows.start:
                value = kernel(x[rows], right[columns])
                if result is None:
                    result = value.new_empty(len(x), len(right), *value.shape[2:])
                result[rows, columns] = value
                if x2 is None and columns.start > rows.start:
                    result[columns, rows] = _swap(value)
            done += (rows.stop - rows.start) * (columns.stop - columns.start)
            if progress is not None:
                progress(done / (len(x) * len(right)))
    return torch.empty(len(x), len(right)) if result is None else result


def _swap(value: Tensor) -> Tensor:
    """The kernel of (y, x) from that of (x, y)."""
    flipped = value.transpose(0, 1)
    return flipped.mT if flipped.ndim == 4 else flipped
