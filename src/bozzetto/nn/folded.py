"""`Folded`: a sketched layer with all its constants folded together, for evaluation only."""

import copy
from typing import cast

import torch
from torch import Tensor, nn

from bozzetto.fold import fold, unfold
from bozzetto.nn.parts import Down, Raised, Up, map_order, on_axis
from bozzetto.nn.sketched import Sketched
from bozzetto.sketch import Fold


class Folded(nn.Module):
    """y = unfold(outer(x)) + inner(fold(x)): at most four operations, nothing called between them.

    Scales stand in the signs, the bias in the last operation that can add it for nothing. The cores
    are copies: the layer stays as it is.

    Raises:
        TypeError: for a layer that `Folded.takes` refuses.
    """

    up: Tensor  # (m,): scaled signs
    down: Tensor  # (n,)

    def __init__(self, layer: Sketched) -> None:
        super().__init__()
        if not self.takes(layer):
            raise TypeError(f"Folded needs ungrouped terms behind one fold each; got {layer}")
        self.dim, self.outer, self.inner = layer.dim, None, None
        bias = None if layer.bias is None else layer.bias.detach().clone()
        for term in layer.terms:
            first, last = cast(nn.Sequential, term)
            side = cast(Up | Down, last if isinstance(term, Raised) else first)
            signs = cast(Fold, side.sketch).signs * side.scale
            if isinstance(term, Raised):
                self.outer = copy.deepcopy(first)
                self.register_buffer("up", signs)
            else:
                self.inner, self.k = copy.deepcopy(last), side.sketch.k
                self.register_buffer("down", signs)
        if self.outer is None and bias is not None:
            cast(nn.Module, self.inner).bias = nn.Parameter(bias)
            bias = None
        self.register_buffer("bias", None if bias is None else on_axis(bias, self.dim))

    @staticmethod
    def takes(layer: nn.Module) -> bool:
        """Whether a module is a sketched linear layer or convolution of that kind."""
        if not isinstance(layer, Sketched) or layer.shape.groups > 1:
            return False
        if type(layer).forward is not Sketched.forward or "forward" in vars(layer):
            return False
        sides = [part for term in layer.terms for part in cast(nn.Sequential, term).children()]
        sides = [part for part in sides if not isinstance(part, nn.Embedding)]
        fixed = [part for part in sides if isinstance(part, Up | Down)]
        whole = len(sides) == 2 * len(list(layer.terms)) == 2 * len(fixed)
        return whole and all(isinstance(side.sketch, Fold) for side in fixed)

    def extra_repr(self) -> str:
        """The axis."""
        return f"dim={self.dim}"

    def forward(self, x: Tensor) -> Tensor:
        """What the sketched layer gives."""
        y = None
        if self.outer is not None:
            y = unfold(self.outer(x), self.up, self.dim, self.bias)
        if self.inner is None:
            return cast(Tensor, y)
        z = self.inner(fold(x, self.down, self.k, self.dim))
        return z if y is None else y + z

    def absorb_(self, scale: Tensor, shift: Tensor) -> None:
        """Multiply the output by (m,) and add (m,), as a batch norm does."""
        if self.outer is not None:
            bias = on_axis(shift, self.dim)
            if self.bias is not None:
                bias = bias + self.bias * on_axis(scale, self.dim)
            self.up, self.bias = self.up * scale, bias
            shift = torch.zeros_like(shift)
        if self.inner is not None:
            absorb_(self.inner, scale, None if self.outer is not None else shift)


def absorb_(layer: nn.Module, scale: Tensor, shift: Tensor | None) -> None:
    """Multiply a layer's output channels by (m,) and add (m,)."""
    if isinstance(layer, Folded):
        layer.absorb_(scale, cast(Tensor, shift))
        return
    weight = map_order(layer, cast(Tensor, layer.weight).detach())
    scaled = map_order(layer, weight * scale.view(-1, *[1] * (weight.ndim - 1)))
    layer.weight = nn.Parameter(scaled.contiguous(), requires_grad=False)
    bias = cast(Tensor | None, layer.bias)
    if shift is not None:
        shift = shift if bias is None else shift + bias.detach() * scale
        layer.bias = nn.Parameter(shift, requires_grad=False)


__all__ = ["Folded", "absorb_"]
