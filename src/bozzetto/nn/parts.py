"""The parts of a sum of sketched terms (`Down`, `Up`, `Raised`, …) and the `Sum`."""

from collections.abc import Callable
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.module import _has_any_global_hook

from bozzetto.sketch import Sketch

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Side(nn.Module):
    """A fixed sketch along one axis, group by group, times a constant.

    Raises:
        ValueError: for an axis that is not counted from the end.
    """

    def __init__(self, sketch: Sketch, dim: int = -1, groups: int = 1, scale: float = 1.0) -> None:
        super().__init__()
        self.sketch, self.dim, self.groups, self.scale = sketch, from_end(dim), groups, scale

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

    def forward(self, y: Tensor, onto: Tensor | None = None) -> Tensor:
        """Bring the axis back, and add it to `onto`: (g·m,), or of the result's shape."""
        y = y if self.scale == 1 else y * self.scale
        if onto is not None and onto.ndim == 1:
            onto = on_axis(onto, self.dim)
        if self.groups > 1:
            y = y.unflatten(self.dim, (self.groups, self.sketch.k))
            if onto is not None:
                onto = onto.unflatten(self.dim, (self.groups, self.sketch.n))
        sketch, dim = self.sketch, self.dim
        x = sketch.up(y, dim) if onto is None else sketch.up_onto(onto, y, dim)
        return x if self.groups == 1 else x.flatten(self.dim - 1, self.dim)


class Raised(nn.Sequential):
    """A core, then `Up`, which can add to what is there."""

    def forward(self, input: Tensor, onto: Tensor | None = None) -> Tensor:
        """Up(core(x)) + onto; whoever traces the graph gets the two apart."""
        core, up = self
        y = core(input)
        if onto is None or isinstance(y, fx.Proxy):
            return up(y) if onto is None else up(y) + onto
        return up(y, onto)


class Lowered(nn.Sequential):
    """What sketches the input, then a core, which may take a bias into its own operation."""

    def forward(self, input: Tensor, bias: Tensor | None = None) -> Tensor:
        """core(down(x)) + bias; a bias (m,) only where `fuses` says so."""
        down, core = self
        x = down(input)
        if bias is None:
            return core(x)
        weight = cast(Tensor, core.weight)
        if isinstance(core, nn.Linear):
            return F.linear(x, weight, bias)
        return cast(nn.Conv2d, core)._conv_forward(x, weight, bias)

    def fuses(self, x: Tensor, bias: Tensor) -> bool:
        """Whether calling the core does nothing but apply torch's own operation to its weight.

        Not where it has hooks, was replaced or is being traced: then it must be seen to be called.
        """
        core = self[1]
        traced = isinstance(x, fx.Proxy) or torch.compiler.is_compiling()
        if traced or type(core) not in (nn.Linear, *CONVS) or not unobserved(core):
            return False
        return core.bias is None and core.weight.dtype is bias.dtype


def unobserved(module: nn.Module) -> bool:
    """Whether calling a module runs the forward of its class and nothing else."""
    own = (module._forward_hooks, module._forward_pre_hooks)
    own += (module._backward_hooks, module._backward_pre_hooks)
    return not (any(own) or _has_any_global_hook() or "forward" in vars(module))


class JointDown(nn.Module):
    """Sketch whole patches: the fixed convolution whose kernel is scale · U.

    Takes over `conv` (group channels n -> k' with the layer's geometry), whose trained weight it
    replaces by the sketch U: (k', n·taps), the same for every group.
    """

    def __init__(self, sketch: Sketch, conv: nn.Module, groups: int, scale: float) -> None:
        super().__init__()
        own = cast(Tensor, conv.weight)
        del conv.weight
        conv.register_buffer("weight", torch.empty_like(own.detach()), persistent=False)
        self.sketch, self.conv, self.groups, self.scale = sketch, conv, groups, scale
        self._spread_()

    def _spread_(self) -> None:
        """Write the sketch into the kernel."""
        kernel = cast(Tensor, self.conv.weight)
        own = (self.sketch.dense() * self.scale).reshape(self.sketch.k, *kernel.shape[1:])
        kernel.copy_(own.repeat(self.groups, *[1] * (own.ndim - 1)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What comes from the meta device, where there are no numbers, gets the sketch's."""
        empty = cast(Tensor, self.conv.weight).is_meta
        super()._apply(fn, recurse)
        if empty and not cast(Tensor, self.conv.weight).is_meta:
            self._spread_()
        return self

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

    The bias goes into the first term that takes it for nothing (`Lowered`); terms that add in their
    own last pass (`Raised`) come last, whatever the order of the terms.

    Raises:
        ValueError: without terms, or for an axis that is not counted from the end.
    """

    bias: nn.Parameter | None

    def __init__(self, *terms: nn.Module, bias: Tensor | None = None, dim: int = -1) -> None:
        super().__init__()
        if not terms:
            raise ValueError("a Sum needs at least one term; got none")
        self.terms, self.dim = nn.ModuleList(terms), from_end(dim)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))

    def forward(self, x: Tensor) -> Tensor:
        """The terms' outputs, added."""
        y, bias = None, self.bias
        for term in self.terms:
            if isinstance(term, Raised):
                continue
            if isinstance(term, Lowered) and bias is not None and term.fuses(x, bias):
                own, bias = term(x, bias), None
            else:
                own = term(x)
            y = own if y is None else y + own
        if bias is not None and (y is not None or isinstance(x, fx.Proxy)):
            bias = on_axis(bias, self.dim)
        if bias is not None:
            y = bias if y is None else y + bias.to(y.dtype)
        for term in self.terms:
            if isinstance(term, Raised):
                y = term(x, y)
        assert y is not None
        return y


def from_end(dim: int) -> int:
    """The axis, if it is counted from the end: layers have channels there, batched or not."""
    if dim >= 0:
        raise ValueError(f"an axis of channels is counted from the end, dim < 0; got {dim}")
    return dim


def on_axis(bias: Tensor, dim: int) -> Tensor:
    """A vector shaped to add along `dim`."""
    return bias if dim == -1 else bias.reshape(-1, *[1] * (-1 - dim))


def map_order(layer: nn.Module, weight: Tensor) -> Tensor:
    """A layer's weight as (m, n per group, *taps), or such a tensor back in the layer's own order.

    The same permutation serves both ways: transposed convolutions and embeddings store the input
    axis first.
    """
    if isinstance(layer, nn.Embedding | Hashed):
        return weight.T
    if isinstance(layer, TRANSPOSED):
        return weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight


def write_weight_(layer: nn.Module, weight: Tensor) -> None:
    """Copy a weight, given in map order or any shape that flattens like it, into the layer."""
    own = cast(nn.Parameter, layer.weight)
    with torch.no_grad():
        if isinstance(layer, nn.Embedding | Hashed):
            own.copy_(weight.reshape(own.shape[1], own.shape[0]).T)
        elif isinstance(layer, TRANSPOSED):
            own.copy_(map_order(layer, weight.reshape(map_order(layer, own).shape)))
        else:
            own.copy_(weight.reshape(own.shape))
