"""How a linear map meets its input: dense rows, look-ups, convolutions of any geometry."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from bozzetto.nn import convs, layers
from bozzetto.nn.sketched import Sketched

CONVS: dict[tuple[int, bool], type[nn.Module]] = {
    (1, False): nn.Conv1d,
    (2, False): nn.Conv2d,
    (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d,
    (2, True): nn.ConvTranspose2d,
    (3, True): nn.ConvTranspose3d,
}
SKETCHED_CONVS = {kind: getattr(convs, f"Sketch{c.__name__}") for kind, c in CONVS.items()}


class Op(ABC):
    """How a linear map meets its input: builds torch layers of any width for it."""

    groups: int

    @property
    def dim(self) -> int:
        """The channels' axis, counted from the end."""
        return -1

    @abstractmethod
    def layer(self, n: int, m: int, *, bias: bool, like: Tensor) -> nn.Module:
        """A plain torch layer n → m (over all groups) with this op's taps and geometry."""

    @abstractmethod
    def pointwise(self, n: int, m: int, *, bias: bool, like: Tensor) -> nn.Module:
        """A plain torch layer n → m that mixes channels only, for the output of `layer`."""

    @abstractmethod
    def sketched(self) -> Callable[..., Sketched]:
        """The sketched layer's constructor, its geometry set: (n, m, k=…, …)."""

    @abstractmethod
    def patches(self, x: Tensor) -> Tensor:
        """What each output position sees: input of the layer -> (groups, positions, d)."""


@dataclass(frozen=True)
class Dense(Op):
    """y = W x along the last axis."""

    groups: int = field(default=1, init=False)

    def layer(self, n: int, m: int, *, bias: bool, like: Tensor) -> nn.Module:
        """nn.Linear."""
        return nn.Linear(n, m, bias, like.device, like.dtype)

    def pointwise(self, n: int, m: int, *, bias: bool, like: Tensor) -> nn.Module:
        """nn.Linear too."""
        return self.layer(n, m, bias=bias, like=like)

    def sketched(self) -> Callable[..., Sketched]:
        """SketchLinear."""
        return layers.SketchLinear

    def patches(self, x: Tensor) -> Tensor:
        """Rows: (..., n) -> (1, b, n)."""
        return x.reshape(1, -1, x.shape[-1])


@dataclass(frozen=True)
class Lookup(Op):
    """Row selection; as a map its input is one-hot, n the vocabulary."""

    padding_idx: int | None = None
    groups: int = field(default=1, init=False)

    def layer(self, n: int, m: int, *, bias: bool, like: Tensor) -> nn.Module:
        """nn.Embedding, which has no bias."""
        assert not bias
        return nn.Embedding(n, m, self.padding_idx, device=like.device, dtype=like.dtype)

    def pointwise(self, n: int, m: int, *, bias: bool, like: Tensor) -> nn.Module:
        """nn.Linear."""
        return nn.Linear(n, m, bias, like.device, like.dtype)

    def sketched(self) -> Callable[..., Sketched]:
        """SketchEmbedding."""
        return partial(layers.SketchEmbedding, padding_idx=self.padding_idx)

    def patches(self, x: Tensor) -> Tensor:
        """A look-up's second moment is its counts; there are no rows to keep."""
        raise NotImplementedError("count the indices of a look-up instead")


@dataclass(frozen=True)
class Conv(Op):
    """A convolution or transposed convolution of any geometry."""

    taps: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int = 1
    padding_mode: str = "zeros"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def spatial(self) -> int:
        """Number of spatial axes."""
        return len(self.taps)

    @property
    def dim(self) -> int:
        """The channels' axis, counted from the end."""
        return -1 - self.spatial

    def _geometry(self) -> dict[str, Any]:
        geometry: dict[str, Any] = {
            "kernel_size": self.taps,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "padding_mode": self.padding_mode,
        }
        return geometry | ({"output_padding": self.output_padding} if self.transposed else {})

    def layer(self, n: int, m: int, *, bias: bool, like: Tensor) -> nn.Module:
        """The torch convolution."""
        made = CONVS[self.spatial, self.transposed]
        return made(n, m, bias=bias, device=like.device, dtype=like.dtype, **self._geometry())

    def pointwise(self, n: int, m: int, *, bias: bool, like: Tensor) -> nn.Module:
        """A 1×1 convolution in the same groups."""
        made = cast(Any, CONVS[self.spatial, False])
        return made(n, m, 1, groups=self.groups, bias=bias, device=like.device, dtype=like.dtype)

    def sketched(self) -> Callable[..., Sketched]:
        """The sketched convolution."""
        return partial(SKETCHED_CONVS[self.spatial, self.transposed], **self._geometry())

    def patches(self, x: Tensor) -> Tensor:
        """Windows: (b, g·n, *size) or unbatched -> (g, b·positions, n·taps)."""
        if x.ndim == self.spatial + 1:
            x = x.unsqueeze(0)
        x = self._stuffed(x) if self.transposed else self._padded(x)
        for axis in range(self.spatial):
            step = 1 if self.transposed else self.stride[axis]
            span = self.dilation[axis] * (self.taps[axis] - 1) + 1
            x = x.unfold(2 + axis, span, step)[..., :: self.dilation[axis]]
        if self.transposed:
            x = x.flip(tuple(range(-self.spatial, 0)))
        x = x.unflatten(1, (self.groups, -1))  # (b, g, n, *positions, *taps)
        x = x.movedim(1, 0).movedim(2, 2 + self.spatial)  # (g, b, *positions, n, *taps)
        return x.flatten(2 + self.spatial).flatten(1, 1 + self.spatial)

    def _padded(self, x: Tensor) -> Tensor:
        spans = [d * (k - 1) for d, k in zip(self.dilation, self.taps, strict=True)]
        if self.padding == "same":
            pads = [(span // 2, span - span // 2) for span in spans]
        elif self.padding == "valid":
            pads = [(0, 0)] * self.spatial
        else:
            pads = [(cast(int, p), cast(int, p)) for p in self.padding]
        flat = [value for pair in reversed(pads) for value in pair]
        return F.pad(x, flat, "constant" if self.padding_mode == "zeros" else self.padding_mode)

    def _stuffed(self, x: Tensor) -> Tensor:
        """The input of the equivalent plain convolution: zeros between, then around."""
        size = [(s - 1) * by + 1 for s, by in zip(x.shape[2:], self.stride, strict=True)]
        wide = x.new_zeros(*x.shape[:2], *size)
        wide[(..., *(slice(None, None, by) for by in self.stride))] = x
        flat = []
        for axis in reversed(range(self.spatial)):
            edge = self.dilation[axis] * (self.taps[axis] - 1) - cast(int, self.padding[axis])
            flat += [edge, edge + self.output_padding[axis]]
        return F.pad(wide, flat)
