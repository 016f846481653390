"""`Signs`: a plain torch layer whose weights are ±c, stored as one bit each."""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from bozzetto.linalg import derive_seed, random_bits
from bozzetto.nn.parts import map_order, write_weight_


def pack_signs(values: Tensor) -> Tensor:
    """One bit an entry, set where it is negative: any shape -> (⌈count/8⌉,) of uint8."""
    negative = (values.flatten() < 0).to(torch.uint8)
    padded = nn.functional.pad(negative, (0, -len(negative) % 8)).view(-1, 8)
    return (
        (padded << torch.arange(8, dtype=torch.uint8, device=values.device)).sum(1).to(torch.uint8)
    )


def unpack_signs(bits: Tensor, count: int) -> Tensor:
    """The first `count` signs: (⌈count/8⌉,) of uint8 -> (count,) of ±1, int8."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return 1 - 2 * (bits.unsqueeze(1) >> places & 1).flatten()[:count].to(torch.int8)


class Signs(nn.Module):
    """A layer with a fixed weight of ±c, c the power of two nearest to 1/√fan_in.

    The state holds `bits`, one a weight, and nothing of it is trained. The weight itself, in the
    layer's type, is made of the bits when they are set or loaded, so that a call costs what the
    plain layer's costs. Powers of two are exact in every type, and rows of unit length keep the
    size of what passes. A new layer has random signs from `seed`. The row of an embedding's
    `padding_idx` is zero.

    Args:
        layer: an nn.Linear, a convolution or an nn.Embedding, taken over; its bias is kept.
        seed: of the first signs.
    """

    bits: Tensor

    def __init__(self, layer: nn.Module, seed: int = 0) -> None:
        super().__init__()
        own = cast(Tensor, layer.weight)
        del layer.weight
        bits = random_bits(derive_seed(seed, "signs"), -(-own.numel() // 8)) & 255
        self.register_buffer("bits", bits.to(own.device, torch.uint8))
        layer.register_buffer("weight", torch.empty_like(own.detach()), persistent=False)
        self.layer = layer
        fan_in = map_order(layer, own)[0].numel()
        self.scale = 2.0 ** -round(math.log2(fan_in) / 2)
        self._spread_()

    @property
    def bias(self) -> nn.Parameter | None:
        """The layer's, trained as ever."""
        return cast("nn.Parameter | None", getattr(self.layer, "bias", None))

    def _spread_(self) -> None:
        """Set the layer's weight to what the bits say."""
        old = cast(Tensor, self.layer.weight)
        signs = unpack_signs(self.bits, old.numel()).view(old.shape)
        self.layer.weight = signs.to(old.dtype) * self.scale
        padding = getattr(self.layer, "padding_idx", None)
        if padding is not None:
            self.layer.weight[padding] = 0.0

    def set_(self, signs: Tensor) -> None:
        """Take new signs: (m, n per group, *taps), or any shape that flattens like it."""
        write_weight_(self.layer, signs)
        self.bits.copy_(pack_signs(cast(Tensor, self.layer.weight)))
        self._spread_()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._spread_()

    def extra_repr(self) -> str:
        """The constant."""
        return f"±{self.scale:g}"

    def forward(self, x: Tensor) -> Tensor:
        """What the layer does."""
        return self.layer(x)


__all__ = ["Signs", "pack_signs", "unpack_signs"]
