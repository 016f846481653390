"""A program as a torch network of finite width, to see how near its limit it is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bozzetto.tangent.kernel import Program
from bozzetto.tangent.program import (
    Bias,
    Coefficient,
    Input,
    Linear,
    Matrix,
    Moment,
    Nonlinear,
    Ones,
    Product,
    Vector,
    ordered,
)


class Realised(nn.Module):
    """The program at the given widths: (N, P, d) -> (N, rows of output · width of output).

    Weights are standard normal and multiplied where they are used (the NTK parametrisation), so
    `empirical_ntk(..., outputs="mean")` approaches `Program.ntk(..., respect_to="unit")`.
    `widths` gives a number for every name of a width; an int is that of "n".

    Raises:
        ValueError: for a width without a number.
    """

    def __init__(self, program: Program, widths: int | Mapping[str, int], *, seed: int = 0) -> None:
        super().__init__()
        self.widths = {"n": widths} if isinstance(widths, int) else dict(widths)
        self.order, self.output = ordered(program.output), program.output
        self._generator = torch.Generator().manual_seed(seed)
        self.weights, self.biases = nn.ModuleDict(), nn.ParameterDict()
        self._keys: dict[Matrix | Bias, str] = {}
        for v in self.order:
            if isinstance(v, Product) and v.matrix not in self._keys:
                self._add_matrix(v.matrix, v, program.dtype)
            elif isinstance(v, Bias):
                self._add_bias(v, program.dtype)

    def size(self, width: str | int) -> int:
        """The number a width stands for."""
        if isinstance(width, int):
            return width
        if width not in self.widths:
            raise ValueError(f"the network needs a number for width {width!r}; got {self.widths}")
        return self.widths[width]

    def _normal(self, *shape: int, dtype: torch.dtype, trained: bool) -> nn.Parameter:
        value = torch.randn(shape, generator=self._generator, dtype=dtype)
        return nn.Parameter(value, requires_grad=trained)

    def _add_matrix(self, matrix: Matrix, use: Product, dtype: torch.dtype) -> None:
        columns = use.width if use.transposed else use.argument.width
        shape = self.size(matrix.rows), self.size(columns)
        layer = nn.Linear(shape[1], shape[0], bias=False, dtype=dtype, device="meta")
        layer.weight = self._normal(*shape, dtype=dtype, trained=matrix.trained)
        self._keys[matrix] = str(len(self._keys))
        self.weights[self._keys[matrix]] = layer

    def _add_bias(self, bias: Bias, dtype: torch.dtype) -> None:
        self._keys[bias] = str(len(self._keys))
        value = self._normal(self.size(bias.width), dtype=dtype, trained=bias.trained)
        self.biases[self._keys[bias]] = value

    def forward(self, x: Tensor) -> Tensor:
        """Outputs, flattened."""
        if x.ndim == 2:
            x = x[:, None]
        values: dict[Vector, Tensor] = {}
        for v in self.order:
            values[v] = self._value(v, x, values)
        return values[self.output].flatten(1)

    def _value(self, v: Vector, x: Tensor, values: dict[Vector, Tensor]) -> Tensor:
        """Every vector is (N, P, width)."""
        match v:
            case Input():
                return x
            case Ones():
                return x.new_ones(len(x), 1, self.size(v.width))
            case Bias():
                return v.scale**0.5 * self.biases[self._keys[v]].expand(len(x), 1, -1)
            case Product():
                return self._product(v, values[v.argument])
            case Nonlinear():
                return v.function(*(values[a].mT for a in v.arguments)).mT
            case Linear():
                terms = (_mixed(c, values[t], values) for c, t in v.terms)
                return sum(terms, x.new_zeros(()))
            case _:
                raise TypeError(f"no rule for {type(v).__name__}")

    def _product(self, v: Product, argument: Tensor) -> Tensor:
        matrix, layer = v.matrix, self.weights[self._keys[v.matrix]]
        assert isinstance(layer, nn.Linear)
        product = argument @ layer.weight if v.transposed else layer(argument)
        product = matrix.variance**0.5 * product
        if matrix.mean:
            product = product + matrix.mean * argument.sum(-1, keepdim=True)
        return matrix.gain * product / layer.weight.shape[1] ** 0.5


def _mixed(coefficient: Coefficient, value: Tensor, values: dict[Vector, Tensor]) -> Tensor:
    if isinstance(coefficient, Moment):
        grams = [values[a] @ values[b].mT / values[a].shape[-1] for a, b in coefficient.pairs]
        return coefficient.function(*grams) @ value
    return coefficient.to(value) @ value if isinstance(coefficient, Tensor) else coefficient * value
