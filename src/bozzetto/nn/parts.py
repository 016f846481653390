"""The parts of a sum of sketched terms (`Down`, `Up`, `JointDown`, `Hashed`) and the `Sum`."""

from typing import cast

import torch
from torch import Tensor, nn

from bozzetto.sketch import Sketch


class Side(nn.Module):
    """A fixed sketch along one axis, group by group, times a constant."""

    def __init__(self, sketch: Sketch, dim: int = -1, groups: int = 1, scale: float = 1.0) -> None:
        super().__init__()
        self.sketch, self.dim, self.groups, self.scale = sketch, dim, groups, scale

    def extra_repr(self) -> str:
        """The axis, and what is not the default."""
        parts = [f"dim={self.dim}"]
        parts += [f"groups={self.groups}"] * (self.groups > 1)
        parts += [f"scale={self.scale:.4g}"] * (self.scale != 1)
        return ", ".join(parts)


class Down(Side):
    """scale · U along an axis: (..., g·n, ...) -> (..., g·k, ...)."""

    def forward(self, x: Tensor) -> Tensor:
        """Sketch the axis."""
        if self.groups == 1:
            y = self.sketch.down(x, self.dim)
        else:
            x = x.unflatten(self.dim, (self.groups, self.sketch.n))
            y = self.sketch.down(x, self.dim).flatten(self.dim - 1, self.dim)
        return y if self.scale == 1 else y * self.scale


class Up(Side):
    """scale · Uᵀ along an axis: (..., g·k, ...) -> (..., g·m, ...)."""

    def forward(self, y: Tensor) -> Tensor:
        """Bring the axis back."""
        y = y if self.scale == 1 else y * self.scale
        if self.groups == 1:
            return self.sketch.up(y, self.dim)
        y = y.unflatten(self.dim, (self.groups, self.sketch.k))
        return self.sketch.up(y, self.dim).flatten(self.dim - 1, self.dim)


class JointDown(nn.Module):
    """Sketch whole patches: the fixed convolution whose kernel is scale · U.

    Takes over `conv` (group channels n -> k' with the layer's geometry), whose trained weight it
    replaces by the sketch U: (k', n·taps), the same for every group.
    """

    def __init__(self, sketch: Sketch, conv: nn.Module, groups: int, scale: float) -> None:
        super().__init__()
        own = cast(Tensor, conv.weight)
        kernel = (sketch.dense() * scale).reshape(sketch.k, *own.shape[1:]).to(own)
        del conv.weight
        repeats = (groups, *[1] * (own.ndim - 1))
        conv.register_buffer("weight", kernel.repeat(repeats), persistent=False)
        self.sketch, self.conv, self.scale = sketch, conv, scale

    def forward(self, x: Tensor) -> Tensor:
        """Sketch every patch."""
        return self.conv(x)


class Hashed(nn.Module):
    """Rows of scale · Uᵀ·table for given indices: an embedding whose vocabulary is sketched.

    The row of `padding_idx` is zero.
    """

    def __init__(
        self, sketch: Sketch, table: Tensor, padding_idx: int | None = None, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.sketch, self.scale, self.padding_idx = sketch, scale, padding_idx
        self.weight = nn.Parameter(table)  # (k, m)

    def extra_repr(self) -> str:
        """Width, and the index left zero."""
        return f"width={self.weight.shape[1]}, padding_idx={self.padding_idx}"

    def forward(self, index: Tensor) -> Tensor:
        """(...) of int64 -> (..., m)."""
        y = self.sketch.lookup(self.weight, index) * self.scale
        if self.padding_idx is None:
            return y
        return y.masked_fill((index == self.padding_idx).unsqueeze(-1), 0.0)


class Sum(nn.Module):
    """y = Σ_t term_t(x) + bias, the bias along axis `dim`.

    Raises:
        ValueError: without terms.
    """

    bias: nn.Parameter | None

    def __init__(self, *terms: nn.Module, bias: Tensor | None = None, dim: int = -1) -> None:
        super().__init__()
        if not terms:
            raise ValueError("a Sum needs at least one term; got none")
        self.terms, self.dim = nn.ModuleList(terms), dim
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))

    def forward(self, x: Tensor) -> Tensor:
        """The terms' outputs, added."""
        first, *rest = self.terms
        y = first(x)
        for term in rest:
            y = y + term(x)
        if self.bias is None:
            return y
        return y + self.bias.reshape(-1, *[1] * (-1 - self.dim)).to(y.dtype)


def map_order(layer: nn.Module, weight: Tensor) -> Tensor:
    """A layer's weight as (m, n per group, *taps), or such a tensor back in the layer's own order.

    The same permutation serves both ways: transposed convolutions and embeddings store the input
    axis first.
    """
    if isinstance(layer, nn.Embedding | Hashed):
        return weight.T
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight


def write_weight_(layer: nn.Module, weight: Tensor) -> None:
    """Copy a weight, given in map order or any shape that flattens like it, into the layer."""
    own = cast(nn.Parameter, layer.weight)
    with torch.no_grad():
        if isinstance(layer, nn.Embedding | Hashed):
            own.copy_(weight.reshape(own.shape[1], own.shape[0]).T)
        elif isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            own.copy_(map_order(layer, weight.reshape(map_order(layer, own).shape)))
        else:
            own.copy_(weight.reshape(own.shape))
