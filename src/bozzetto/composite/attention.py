"""Multi-head attention whose four projections are linear layers that are really called."""

from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bozzetto.composite.twins import clone, inherit, is_exactly, linear
from bozzetto.maps import expand_one


class MultiheadAttention(nn.Module):
    """Attention over h heads with `q_proj`, `k_proj`, `v_proj` and `out_proj` as children.

    Called as torch's `nn.MultiheadAttention` is, and returns what that returns (Vaswani et al.,
    2017, "Attention is all you need", §3.2). The children are called, never read: each may be
    replaced by any module of the same widths.

    Args:
        q_proj: queries, (..., n) -> (..., h·d).
        k_proj: keys, (..., kdim) -> (..., h·d).
        v_proj: values, (..., vdim) -> (..., h·d).
        out_proj: heads to output, (..., h·d) -> (..., n).
        num_heads: h.
        dropout: probability to drop an attention weight in training.
        bias_k: a key appended to every sequence, (1, 1, h·d); needs `bias_v`.
        bias_v: its value, (1, 1, h·d).
        add_zero_attn: append a key and a value of zeros.
        batch_first: batched inputs are (b, t, n), not (t, b, n).

    Raises:
        ValueError: if the heads do not divide the width, or one of bias_k, bias_v is missing.
    """

    # Torch's encoder layer asks these before its fused path, which would read weights directly.
    in_proj_bias: ClassVar[None] = None
    _qkv_same_embed_dim: ClassVar[bool] = False

    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None

    def __init__(
        self,
        q_proj: nn.Linear,
        k_proj: nn.Linear,
        v_proj: nn.Linear,
        out_proj: nn.Linear,
        *,
        num_heads: int,
        dropout: float = 0.0,
        bias_k: nn.Parameter | None = None,
        bias_v: nn.Parameter | None = None,
        add_zero_attn: bool = False,
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = q_proj.out_features, num_heads
        if num_heads < 1 or self.embed_dim % num_heads:
            raise ValueError(f"heads must divide the width {self.embed_dim}; got {num_heads} heads")
        if (bias_k is None) != (bias_v is None):
            raise ValueError("bias_k and bias_v come together; got only one of them")
        self.head_dim = self.embed_dim // num_heads
        self.kdim, self.vdim = k_proj.in_features, v_proj.in_features
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = q_proj, k_proj, v_proj, out_proj
        self.register_parameter("bias_k", bias_k)
        self.register_parameter("bias_v", bias_v)
        self.dropout, self.add_zero_attn, self.batch_first = dropout, add_zero_attn, batch_first

    def extra_repr(self) -> str:
        """The heads, and what is not the default."""
        parts = [f"num_heads={self.num_heads}"]
        parts += [f"dropout={self.dropout}"] * (self.dropout > 0)
        parts += ["add_bias_kv=True"] * (self.bias_k is not None)
        parts += ["add_zero_attn=True"] * self.add_zero_attn
        parts += ["batch_first=True"] * self.batch_first
        return ", ".join(parts)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from t queries to s keys, batched or not.

        Args:
            query: (b, t, n) if batch_first, else (t, b, n); (t, n) without a batch.
            key: the same with s and kdim for t and n.
            value: the same with s and vdim.
            key_padding_mask: (b, s), or (s,) without a batch; True hides a key, a float is added
                to its scores.
            need_weights: return the attention weights too.
            attn_mask: (t, s) or (b·h, t, s); True hides, a float is added to the score.
            average_attn_weights: return the mean of the weights over heads.
            is_causal: a promise that `attn_mask` is the causal mask, which may then go unread.

        Returns:
            The output, shaped like the query, and the weights, (b, t, s) if averaged, else
            (b, h, t, s), without b if the query is without; None if they are not needed.

        Raises:
            ValueError: for inputs or masks of a wrong shape, or is_causal without a mask.
            TypeError: for masks that are neither bool nor floating point.
        """
        batched = self._check(query, key, value)
        if is_causal and attn_mask is None:
            raise ValueError("is_causal describes attn_mask; got is_causal=True without a mask")
        q = self._heads(self.q_proj(query), batched)  # (b, h, t, d)
        k = self._heads(self.k_proj(key), batched)  # (b, h, s, d)
        v = self._heads(self.v_proj(value), batched)
        hint = is_causal and key_padding_mask is None and not need_weights
        bias = None if hint else _scores_bias(attn_mask, key_padding_mask, q, k)
        k, v, bias = self._append_keys(k, v, bias)
        p = self.dropout if self.training else 0.0
        if not need_weights:
            y = F.scaled_dot_product_attention(q, k, v, bias, p, hint)
            return self._output(y, batched), None
        scores = (q * self.head_dim**-0.5) @ k.transpose(-1, -2)  # (b, h, t, s)
        weights = F.dropout((scores if bias is None else scores + bias).softmax(-1), p)
        y = self._output(weights @ v, batched)
        weights = weights.mean(1) if average_attn_weights else weights
        return y, weights if batched else weights.squeeze(0)

    def _check(self, query: Tensor, key: Tensor, value: Tensor) -> bool:
        """Whether the inputs are batched."""
        if query.ndim not in (2, 3) or not query.ndim == key.ndim == value.ndim:
            raise ValueError(
                "query, key and value need 3 axes, or 2 without a batch; "
                f"got {query.ndim}, {key.ndim} and {value.ndim}"
            )
        batch = 0 if self.batch_first else 1
        alike = key.shape[:-1] == value.shape[:-1]
        if not alike or (query.ndim == 3 and query.shape[batch] != key.shape[batch]):
            raise ValueError(
                "query, key and value need one batch size, key and value one length; "
                f"got {tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}"
            )
        return query.ndim == 3

    def _heads(self, x: Tensor, batched: bool) -> Tensor:
        """Of projected inputs, in the caller's layout -> (b, h, t, d)."""
        x = x.unflatten(-1, (self.num_heads, -1))
        if not batched:
            return x.transpose(0, 1).unsqueeze(0)
        return x.transpose(1, 2) if self.batch_first else x.permute(1, 2, 0, 3)

    def _output(self, y: Tensor, batched: bool) -> Tensor:
        """Join the heads (b, h, t, d), in the caller's layout, and project them."""
        if not batched:
            y = y.squeeze(0).transpose(0, 1)
        else:
            y = y.transpose(1, 2) if self.batch_first else y.permute(2, 0, 1, 3)
        return self.out_proj(y.flatten(-2))

    def _append_keys(
        self, k: Tensor, v: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values and scores' bias with the learned and the zero key, which no mask hides."""
        zeros = torch.zeros_like(k[:, :, :1])
        keys, values = [k], [v]
        if self.bias_k is not None and self.bias_v is not None:
            shape = (1, self.num_heads, 1, -1)
            keys.append(self.bias_k.view(shape).to(k.dtype).expand_as(zeros))
            values.append(self.bias_v.view(shape).to(v.dtype).expand_as(zeros))
        if self.add_zero_attn:
            keys.append(zeros)
            values.append(zeros)
        if len(keys) == 1:
            return k, v, bias
        bias = None if bias is None else F.pad(bias, (0, len(keys) - 1))
        return torch.cat(keys, 2), torch.cat(values, 2), bias


def _scores_bias(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, k: Tensor
) -> Tensor | None:
    """What the masks add to the scores (b, h, t, s): a tensor of 4 axes, or None without masks."""
    b, h, t, s = *q.shape[:3], k.shape[2]
    bias = None
    if attn_mask is not None:
        plain = attn_mask.ndim == 2
        bias = _additive(attn_mask, "attn_mask", (t, s) if plain else (b * h, t, s), q.dtype)
        bias = bias.reshape((1, 1, t, s) if plain else (b, h, t, s))
    if key_padding_mask is not None:
        mask = key_padding_mask if key_padding_mask.ndim > 1 else key_padding_mask.unsqueeze(0)
        hidden = _additive(mask, "key_padding_mask", (b, s), q.dtype)[:, None, None]
        bias = hidden if bias is None else bias + hidden
    return bias


def _additive(mask: Tensor, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A mask as a term of the scores: -inf where a bool mask is True, a float as it is."""
    if mask.shape != shape:
        raise ValueError(f"{name} must have shape {shape}; got {tuple(mask.shape)}")
    if mask.is_floating_point():
        return mask.to(dtype)
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must be bool or floating point; got {mask.dtype}")
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))


_PARAMETERS = (
    *("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
    *("in_proj_bias", "bias_k", "bias_v"),
)


@expand_one.register
def _(module: nn.MultiheadAttention) -> nn.Module:
    # Torch reads out_proj's weight whatever its forward does: only a plain one has a twin.
    if (
        not is_exactly(module, nn.MultiheadAttention, _PARAMETERS)
        or type(module.out_proj).forward is not nn.Linear.forward
    ):
        return module
    q_proj, k_proj, v_proj = _input_maps(module)
    twin = MultiheadAttention(
        q_proj,
        k_proj,
        v_proj,
        module.out_proj,
        num_heads=module.num_heads,
        dropout=module.dropout,
        bias_k=None if module.bias_k is None else clone(module.bias_k),
        bias_v=None if module.bias_v is None else clone(module.bias_v),
        add_zero_attn=module.add_zero_attn,
        batch_first=module.batch_first,
    )
    return inherit(twin, module)


def _input_maps(module: nn.MultiheadAttention) -> Iterator[nn.Linear]:
    """The three maps that torch keeps packed: the rows of one bias, and of one weight or three."""
    for place, name in enumerate(("q_proj_weight", "k_proj_weight", "v_proj_weight")):
        rows = slice(place * module.embed_dim, (place + 1) * module.embed_dim)
        packed = module.in_proj_weight is not None
        weight = clone(module.in_proj_weight, rows) if packed else clone(getattr(module, name))
        bias = None if module.in_proj_bias is None else clone(module.in_proj_bias, rows)
        yield linear(weight, bias)


__all__ = ["MultiheadAttention"]
