"""What torch's layers and functions are in a program."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bozzetto.tangent.activation import Activation, Erf, Gelu, Identity, Rectifier, Sin, relu
from bozzetto.tangent.blocks import layer_norm
from bozzetto.tangent.images import Image, Window
from bozzetto.tangent.program import Bias, Matrix, Vector, add, apply
from bozzetto.tangent.quadrature import Quadrature

__all__ = ["FUNCTIONS", "Reader", "Value", "read_module"]


@dataclass(frozen=True)
class Value:
    """A vector whose positions are a grid: () for one, (T,) for tokens, (H, W) for pixels.

    `flat` says that positions and coordinates were merged, to be read by one dense layer.
    """

    vector: Vector
    grid: tuple[int, ...]
    flat: bool = False

    def to(self, vector: Vector) -> Value:
        """The same positions with another vector."""
        return replace(self, vector=vector)

    @property
    def image(self) -> Image:
        """As an image."""
        if len(self.grid) != 2 or self.flat:
            raise ValueError(f"needs an image; got positions {self.grid}")
        return Image(self.vector, (self.grid[0], self.grid[1]))


class Reader:
    """Weights already met, so that a module or parameter used twice is one matrix."""

    def __init__(self) -> None:
        self._matrices: dict[tuple[int, int], Matrix] = {}
        self._biases: dict[int, Bias] = {}

    def matrix(self, name: str, weight: Tensor, *, part: int = 0, gain: float = 1.0) -> Matrix:
        """The matrix of a weight (m, fan-in...), its variance that of the entries × fan-in."""
        key = (id(weight), part)
        if key not in self._matrices:
            variance = float(weight.detach().double().square().mean()) * prod(weight.shape[1:])
            trained = weight.requires_grad
            rows = f"n{weight.shape[0]}"
            self._matrices[key] = Matrix(name, variance, gain, rows, trained=trained)
        return self._matrices[key]

    def bias(self, name: str, value: Tensor, width: str) -> Bias:
        """A bias, its variance that of the entries."""
        if id(value) not in self._biases:
            variance = float(value.detach().double().square().mean())
            trained = value.requires_grad
            self._biases[id(value)] = Bias(width, 1, f"{name}.bias", variance, trained=trained)
        return self._biases[id(value)]

    def linear(self, m: nn.Linear, x: Value, name: str) -> Value:
        """A dense layer, of every position or of all merged."""
        _check_last(x)
        width = f"n{m.out_features}"
        if x.flat:
            gain = prod(x.grid) ** -0.5
            parts: list[Vector] = [
                self.matrix(f"{name}[{s}]", m.weight, part=s, gain=gain) @ x.vector.at(s)
                for s in range(prod(x.grid))
            ]
        else:
            parts = [self.matrix(name, m.weight) @ x.vector]
        if m.bias is not None:
            parts.append(self.bias(name, m.bias, width))
        return Value(add(*parts), () if x.flat else x.grid)

    def conv(self, m: nn.Conv2d, x: Value, name: str) -> Value:
        """A convolution: one matrix an offset."""
        image, window = x.image, _window(m)
        gain = window.size**-0.5
        parts: list[Vector] = [
            self.matrix(f"{name}[{k}]", m.weight, part=k, gain=gain) @ x.vector.mix(shift)
            for k, shift in enumerate(window.shifts(image.size))
        ]
        if m.bias is not None:
            parts.append(self.bias(name, m.bias, f"n{m.out_channels}"))
        return Value(add(*parts), window.output(image.size))


def _two(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _check_last(x: Value) -> None:
    """Refuse what acts on the last axis where that holds pixels, not coordinates."""
    if len(x.grid) == 2 and not x.flat:
        raise ValueError(f"acts on rows of pixels {x.grid}: flatten them first")


def _window(m: nn.Conv2d) -> Window:
    if m.groups != 1 or m.padding_mode not in ("zeros", "circular"):
        raise ValueError("needs a convolution without groups, padded with zeros or circularly")
    kernel, dilation = _two(m.kernel_size), _two(m.dilation)
    padding = m.padding if isinstance(m.padding, str) else _two(m.padding)
    if m.padding_mode == "circular":
        same = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
        if padding not in ("same", same):
            raise ValueError("needs a circular convolution that keeps the size of its input")
        padding = "circular"
    return Window(kernel, _two(m.stride), padding, dilation)  # type: ignore[arg-type]


def _activation(m: nn.Module) -> Activation | None:
    match m:
        case nn.ReLU():
            return relu
        case nn.LeakyReLU():
            return Rectifier(m.negative_slope)
        case nn.GELU() if m.approximate == "none":
            return Gelu()
        case nn.Tanh() | nn.Sigmoid() | nn.SiLU() | nn.Softplus() | nn.GELU():
            return Quadrature(m)
        case nn.ELU():
            return Quadrature(m, rule="polar")  # its second derivative jumps at zero
        case nn.Identity() | nn.Dropout():
            return Identity()
        case _:
            return None


def _pooled(m: nn.AvgPool2d | nn.MaxPool2d, x: Value) -> Value:
    kernel = _two(m.kernel_size)
    stride = kernel if m.stride is None else _two(m.stride)
    if m.ceil_mode or getattr(m, "divisor_override", None):
        raise ValueError("needs pooling without ceil_mode and divisor_override")
    if isinstance(m, nn.MaxPool2d):
        window = Window(kernel, stride, _two(m.padding), _two(m.dilation))
        image = x.image.largest(window)
    else:
        window = Window(kernel, stride, _two(m.padding))
        image = x.image.average(window, count_padding=m.count_include_pad)
    return Value(image.vector, image.size)


def _flattened(x: Value, start: int = 1) -> Value:
    if start != 1:
        raise ValueError("needs flatten(1)")
    return replace(x, flat=len(x.grid) > 0, grid=x.grid)


def _averaged(x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """Mean over all positions: pixels (2, 3), or tokens 1."""
    dims = {dim} if isinstance(dim, int) else set(dim or ())
    wanted = [{2, 3}, {-1, -2}] if len(x.grid) == 2 else [{1}, {-2}]
    if x.flat or not x.grid or dims not in wanted:
        raise ValueError(f"needs a mean over all positions {x.grid}; got dim={dim}")
    return Value(x.vector.mean(), (1, 1) if keepdim and len(x.grid) == 2 else ())


def read_module(reader: Reader, m: nn.Module, x: Value, name: str) -> Value:
    """A layer applied to x.

    Raises:
        ValueError: for one that no rule reads, saying why.
    """
    if hasattr(m, "weight") and "weight" not in {**m._parameters, **m._buffers}:
        raise ValueError(f"the weight of {m} is computed from other parameters")
    activation = _activation(m)
    if activation is not None:
        return x if isinstance(activation, Identity) else x.to(apply(activation, x.vector))
    match m:
        case nn.Linear():
            return reader.linear(m, x, name)
        case nn.Conv2d():
            return reader.conv(m, x, name)
        case nn.AvgPool2d() | nn.MaxPool2d():
            return _pooled(m, x)
        case nn.AdaptiveAvgPool2d() if _two(m.output_size) == (1, 1):
            return Value(x.image.mean(), (1, 1))
        case nn.Flatten() if m.end_dim == -1:
            return _flattened(x, m.start_dim)
        case nn.LayerNorm() if not m.elementwise_affine and len(m.normalized_shape) == 1:
            _check_last(x)
            return x.to(layer_norm(x.vector, eps=m.eps))
        case _:
            raise ValueError(f"no rule for {m}")


def _sum(a: Any, b: Any) -> Value:
    if not (isinstance(a, Value) and isinstance(b, Value)):
        raise ValueError("adds a constant")
    if a.grid != b.grid or a.flat != b.flat:
        raise ValueError(f"adds positions {a.grid} and {b.grid}")
    return a.to(add(a.vector, b.vector))


def _times(a: Any, b: Any) -> Value:
    value, factor = (a, b) if isinstance(a, Value) else (b, a)
    if not isinstance(factor, int | float):
        raise ValueError("multiplies two vectors: write it as a function of several arguments")
    return value.to(value.vector * float(factor))


def _function(activation: Activation) -> Callable[..., Value]:
    return lambda x, inplace=False: x.to(apply(activation, x.vector))


FUNCTIONS: dict[Any, Callable[..., Value]] = {
    operator.add: _sum,
    operator.iadd: _sum,
    torch.add: _sum,
    operator.mul: _times,
    operator.truediv: lambda a, b: _times(a, 1 / b),
    torch.flatten: _flattened,
    torch.mean: _averaged,
    torch.relu: _function(relu),
    F.relu: _function(relu),
    F.gelu: _function(Gelu()),
    torch.tanh: _function(Quadrature(torch.tanh)),
    torch.erf: _function(Erf()),
    torch.sin: _function(Sin()),
    "add": _sum,
    "flatten": _flattened,
    "mean": _averaged,
    "relu": _function(relu),
    "tanh": _function(Quadrature(torch.tanh)),
    "erf": _function(Erf()),
    "sin": _function(Sin()),
}
