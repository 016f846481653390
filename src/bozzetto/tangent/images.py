"""Blocks on images: convolutions and poolings as mixings of pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from bozzetto.tangent.program import Bias, Linear, Matrix, Nonlinear, Vector, add, apply

Padding = int | tuple[int, int] | Literal["same", "valid", "circular"]


@dataclass(frozen=True)
class Window:
    """A window sliding over an image: which input pixel each output pixel sees at each offset.

    `padding` is a number of zeros a side (or one per axis), "same" (as torch: output as large as
    the input at stride 1; the extra zero goes last), "valid" (none), or "circular" with the extent
    of "same".
    """

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: Padding = 0
    dilation: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        sizes = (*self.kernel, *self.stride, *self.dilation)
        if min(sizes) < 1:
            raise ValueError(f"kernel, stride and dilation are at least 1; got {sizes}")

    @property
    def before(self) -> tuple[int, int]:
        """How many positions before the image the first window starts."""
        match self.padding:
            case "valid":
                return 0, 0
            case "same" | "circular":
                reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
                return reach[0] // 2, reach[1] // 2
            case int():
                return self.padding, self.padding
            case _:
                return self.padding

    def output(self, image: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the result."""
        return self.places(image[0], 0), self.places(image[1], 1)

    def places(self, length: int, which: int) -> int:
        """How many windows there are along one axis.

        Raises:
            ValueError: if there is none.
        """
        reach = self.dilation[which] * (self.kernel[which] - 1)
        whole = self.padding in ("same", "circular")
        around = reach if whole else 2 * self.before[which]
        found = (length + around - reach - 1) // self.stride[which] + 1
        if found < 1:
            raise ValueError(f"a window {self.kernel} does not fit {length} pixels on axis {which}")
        return found

    def axis(self, length: int, which: int) -> Tensor:
        """Input index of each (offset, output position) along one axis, −1 outside: (k, out)."""
        out = self.places(length, which)
        start = torch.arange(out) * self.stride[which] - self.before[which]
        offset = torch.arange(self.kernel[which]) * self.dilation[which]
        index = offset[:, None] + start
        if self.padding == "circular":
            return index % length
        return index.where((index >= 0) & (index < length), -1)

    def shifts(self, image: tuple[int, int]) -> Iterator[Tensor]:
        """For each offset, the 0/1 matrix (out pixels, in pixels) that picks what it sees."""
        rows, columns = self._along(image)
        for i, j in product(range(self.kernel[0]), range(self.kernel[1])):
            yield torch.kron(rows[i], columns[j])

    def _along(self, image: tuple[int, int]) -> tuple[Tensor, Tensor]:
        parts = []
        for which in (0, 1):
            index = self.axis(image[which], which)
            one = torch.nn.functional.one_hot(index.clamp(min=0), image[which]).double()
            parts.append(one * (index >= 0)[..., None])
        return parts[0], parts[1]

    @property
    def size(self) -> int:
        """Number of offsets."""
        return self.kernel[0] * self.kernel[1]


@dataclass(frozen=True)
class Image:
    """A vector whose positions are the pixels of an (H, W) image, row by row."""

    vector: Vector
    size: tuple[int, int]

    def convolve(
        self,
        window: Window,
        *,
        name: str = "conv",
        variance: float = 1.0,
        bias: float | None = None,
        width: str = "n",
    ) -> Image:
        """Σ over offsets of W_k x_{s+k}, entries of W_k of variance `variance`/(offsets · n)."""
        terms: list[Vector] = [
            Matrix(f"{name}[{k}]", variance, gain=window.size**-0.5, rows=width)
            @ self.vector.mix(shift)
            for k, shift in enumerate(window.shifts(self.size))
        ]
        if bias is not None:
            terms.append(Bias(width, 1, f"{name}.bias", bias))
        return Image(add(*terms), window.output(self.size))

    def average(self, window: Window, *, count_padding: bool = True) -> Image:
        """Average pooling; `count_padding` as torch's count_include_pad."""
        total = torch.stack(list(window.shifts(self.size))).sum(0)
        count = window.size if count_padding else total.sum(1, keepdim=True)
        return Image(self.vector.mix(total / count), window.output(self.size))

    def largest(self, window: Window) -> Image:
        """Max pooling: a function of several arguments, for sampled kernels only."""
        seen = torch.stack(list(window.shifts(self.size)), 1)  # (out, offsets, in)
        index = seen.argmax(-1)
        outside = seen.sum(-1) == 0

        def largest(x: Tensor) -> Tensor:
            return x[..., index].masked_fill(outside, -torch.inf).amax(-1)

        size = window.output(self.size)
        node = apply(largest, self.vector, positions=size[0] * size[1], name="max pooling")
        return Image(node, size)

    def mean(self) -> Linear:
        """Global average pooling."""
        return self.vector.mean()

    def map(self, vector: Vector | Nonlinear) -> Image:
        """The same pixels with another vector on them."""
        return Image(vector, self.size)
