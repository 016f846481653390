"""`dense_twin`: the one dense layer that does what the parts of a small layer do together."""

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from bozzetto.nn.blocks import Blocked, BlockLinear
from bozzetto.nn.parts import CONVS, Down, JointDown, Lowered, Raised, Sum, Up, write_weight_

__all__ = ["dense_twin"]

# Of a subclass with a forward of its own nothing is known.
_FORWARDS = {
    kind.forward
    for kind in (
        Sum,
        Blocked,
        Lowered,
        Raised,
        nn.Sequential,
        Down,
        Up,
        JointDown,
        nn.Linear,
        *CONVS,
    )
}
_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "padding_mode")


class _Map(NamedTuple):
    """An ungrouped linear map: weight (m, n, taps), float64, bias (m,), and whose geometry it has.

    A convolution of one tap that moves and pads nothing has no geometry, like a linear layer.
    """

    weight: Tensor
    bias: Tensor | None
    conv: nn.Module | None

    def after(self, first: "_Map") -> "_Map | None":
        """The two in a row, where at most one has a geometry and nothing is padded but zeros."""
        if self.conv is not None and (first.conv is not None or first.bias is not None):
            return None
        weight = torch.einsum("mkt,knu->mntu", self.weight, first.weight).flatten(2)
        bias = self.bias
        if first.bias is not None:
            bias = self.weight[..., 0] @ first.bias + (0.0 if bias is None else bias)
        return _Map(weight, bias, self.conv if self.conv is not None else first.conv)


def dense_twin(layer: nn.Module) -> nn.Module | None:
    """The torch layer with the same outputs as a sum or chain of linear maps; None for others.

    Args:
        layer: a `Sum` of terms, or a `Sequential` of plain layers, without groups of its own.
    """
    if not isinstance(layer, Sum | nn.Sequential) or (found := _read(layer)) is None:
        return None
    like, (m, n, _) = next(layer.parameters()), found.weight.shape
    kinds = {type(part) for part in layer.modules()} & set(CONVS)
    options: dict[str, Any] = {"bias": found.bias is not None}
    options |= {"device": like.device, "dtype": like.dtype}
    if found.conv is not None:
        options |= {name: getattr(found.conv, name) for name in _GEOMETRY}
        made: nn.Module = cast(Any, type(found.conv))(n, m, **options)
    elif kinds:
        made = cast(Any, kinds.pop())(n, m, 1, **options)
    else:
        made = nn.Linear(n, m, **options)
    write_weight_(made, found.weight)
    if found.bias is not None:
        with torch.no_grad():
            cast(Tensor, made.bias).copy_(found.bias)
    return made.train(layer.training)


def _read(part: nn.Module) -> _Map | None:
    """What a part does, where it is known to be linear."""
    if "forward" in vars(part) or type(part).forward not in _FORWARDS:
        return None
    if isinstance(part, Sum):
        return _sum(part)
    if isinstance(part, Blocked):
        down, core, _ = part
        if cast(Down, down).groups > 1 or not isinstance(core, (BlockLinear, *CONVS)):
            return None
        return _Map(_by_taps(part.weight()), None, _moving(core))
    if isinstance(part, nn.Sequential):
        return _chain(list(part))
    if isinstance(part, Down | Up) and part.groups == 1:
        u = part.sketch.dense().double() * part.scale
        return _Map((u.T if isinstance(part, Up) else u).unsqueeze(-1), None, None)
    if isinstance(part, JointDown):
        part = part.conv
    if type(part) not in (nn.Linear, *CONVS) or cast(Any, part).__dict__.get("groups", 1) > 1:
        return None
    weight, bias = cast(Tensor, part.weight), cast(Tensor | None, part.bias)
    return _Map(_by_taps(weight), None if bias is None else bias.detach().double(), _moving(part))


def _by_taps(weight: Tensor) -> Tensor:
    """(m, n, *taps) -> (m, n, all taps)."""
    return weight.detach().double().reshape(*weight.shape[:2], -1)


def _moving(part: nn.Module) -> nn.Module | None:
    """The convolution itself, unless it only mixes the channels of each position."""
    if not isinstance(part, CONVS):
        return None
    still = math.prod(part.kernel_size) == math.prod(part.stride) == 1
    return None if still and (isinstance(part.padding, str) or not any(part.padding)) else part


def _chain(parts: list[nn.Module]) -> _Map | None:
    found = None
    for part in parts:
        own = _read(part)
        found = own if found is None or own is None else own.after(found)
        if found is None:
            return None
    return found


def _sum(layer: Sum) -> _Map | None:
    """Terms of one geometry, added."""
    found = [_read(term) for term in layer.terms]
    terms = [term for term in found if term is not None]
    shapes = {_geometry(term.conv) for term in terms}
    if len(terms) < len(found) or len(shapes) > 1 or any(t.bias is not None for t in terms):
        return None
    weight = torch.stack([term.weight for term in terms]).sum(0)
    bias = None if layer.bias is None else layer.bias.detach().double()
    return _Map(weight, bias, terms[0].conv)


def _geometry(conv: nn.Module | None) -> tuple[Any, ...]:
    return () if conv is None else tuple(getattr(conv, name) for name in _GEOMETRY)
