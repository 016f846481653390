"""Augmentation of batches of images: shifted and mirrored at random."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

__all__ = ["Augmented"]


class Augmented:
    """The batches of a loader with their images shifted and mirrored at random, anew every pass.

    The standard augmentation of CIFAR (He et al. 2016, section 4.2): `shift` zeros around the
    image, a random crop of the old size, mirrored with a chance of one half. `train` seeds the
    generator as it does a loader's, so a resumed run sees the same images.

    Args:
        loader: batches (images, target) or images alone, images (b, c, h, w).
        shift: pixels.
        mirror: whether images may be mirrored left to right.
        seed: of the generator.

    Raises:
        ValueError: for a negative shift; while iterating, for images of another shape.
    """

    def __init__(
        self, loader: Iterable[Any], *, shift: int = 4, mirror: bool = True, seed: int = 0
    ) -> None:
        if shift < 0:
            raise ValueError(f"shift needs to be >= 0; got {shift}")
        self.loader, self.shift, self.mirror = loader, shift, mirror
        self.generator = Generator().manual_seed(seed)

    def __len__(self) -> int:
        """That of the loader."""
        return len(self.loader)  # pyright: ignore[reportArgumentType]

    def __iter__(self) -> Iterator[Any]:
        """A pass."""
        for batch in self.loader:
            if isinstance(batch, Tensor):
                yield self.images(batch)
            else:
                first, *rest = batch
                yield (self.images(first), *rest)

    def images(self, x: Tensor) -> Tensor:
        """Other views of images (b, c, h, w)."""
        if not isinstance(x, Tensor) or x.ndim != 4:
            came = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"images need the shape (b, c, h, w); got {came}")
        b, _, h, w = x.shape
        top, left = (self._draw(b, 2 * self.shift + 1) for _ in range(2))
        rows, columns = torch.arange(h) + top[:, None], torch.arange(w) + left[:, None]
        if self.mirror:
            columns = torch.where(self._draw(b, 2)[:, None] == 1, columns.flip(1), columns)
        padded = F.pad(x, (self.shift,) * 4)
        which = torch.arange(b)[:, None, None]
        return padded.movedim(1, -1)[which, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)

    def _draw(self, count: int, below: int) -> Tensor:
        return torch.randint(below, (count,), generator=self.generator)
