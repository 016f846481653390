"""The narrow waist: a layer reduced to `LinearMap(weight, bias, op)`."""

import math
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bozzetto.linalg import seeded
from bozzetto.nn.parts import map_order, write_weight_
from bozzetto.ops import CONVS, Conv, Dense, Lookup, Op


class NotLinear(TypeError):
    """A module that is not a plain linear map; the message is the reason."""


@dataclass(frozen=True)
class LinearMap:
    """A layer as mathematics: weight (m, n per group, *taps), bias (m,) or None, and its op."""

    weight: Tensor
    bias: Tensor | None
    op: Op

    @property
    def inputs(self) -> int:
        """Input channels over all groups."""
        return self.weight.shape[1] * self.op.groups

    @property
    def outputs(self) -> int:
        """Output channels over all groups."""
        return self.weight.shape[0]

    def matrix(self) -> Tensor:
        """One matrix a group, float64 on the CPU: (g, m/g, d) with d = n·taps."""
        w = self.weight.detach().double().cpu()
        return w.reshape(self.op.groups, self.outputs // self.op.groups, -1)

    @property
    def block(self) -> tuple[int, int]:
        """Size (m/g, d) of one group's matrix."""
        return self.outputs // self.op.groups, math.prod(self.weight.shape[1:])

    def module(self) -> nn.Module:
        """A fresh plain torch layer that applies the map: the dense oracle."""
        bias = self.bias is not None
        with seeded(0, self.weight.device):
            made = self.op.layer(self.inputs, self.outputs, bias=bias, like=self.weight)
        write_weight_(made, self.weight)
        if self.bias is not None:
            with torch.no_grad():
                cast(Tensor, made.bias).copy_(self.bias)
        return made


@singledispatch
def linear_map(module: nn.Module) -> LinearMap:
    """The linear map that a module applies.

    Raises:
        NotLinear: for anything else; the message says why.
    """
    raise NotLinear(f"{type(module).__name__} is not a layer that can be rewritten")


def _check_plain(module: nn.Module, known: type[nn.Module]) -> None:
    """Raise NotLinear unless the module's weight is its map."""
    name = type(module).__name__
    if type(module).forward is not known.forward or "forward" in vars(module):
        raise NotLinear(f"{name} has a forward of its own")
    if parametrize.is_parametrized(module) or module._parameters.get("weight") is None:
        raise NotLinear("its weight is computed (a parametrization or weight norm)")
    weight = cast(nn.Parameter, module.weight)
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise NotLinear("its weight is not initialised yet (lazy module)")
    if not weight.is_floating_point():
        raise NotLinear(f"its weight is {weight.dtype}, not real floating point")


@linear_map.register
def _(module: nn.Linear) -> LinearMap:
    _check_plain(module, nn.Linear)
    return LinearMap(module.weight, module.bias, Dense())


@linear_map.register
def _(module: nn.Embedding) -> LinearMap:
    _check_plain(module, nn.Embedding)
    if module.max_norm is not None:
        raise NotLinear("max_norm renormalises its rows while it runs")
    if module.sparse or module.scale_grad_by_freq:
        raise NotLinear("sparse or frequency-scaled gradients are tied to a dense table")
    return LinearMap(module.weight.T, None, Lookup(module.padding_idx))


def _conv_map(module: Any) -> LinearMap:
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    _check_plain(module, CONVS[len(module.kernel_size), transposed])
    op = Conv(
        module.kernel_size, module.stride, module.padding, module.dilation, module.groups,
        module.padding_mode, transposed, module.output_padding if transposed else (),
    )  # fmt: skip
    return LinearMap(map_order(module, module.weight), module.bias, op)


for _kind in CONVS.values():
    linear_map.register(_kind, _conv_map)


@singledispatch
def expand_one(module: nn.Module) -> nn.Module:
    """The module itself, or an exact twin made of separate linear layers."""
    return module
