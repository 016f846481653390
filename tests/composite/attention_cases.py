"""Attention modules, inputs and masks of every kind, and the comparison of a twin with torch's."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.testing import assert_close

B, H, T, S, N = 3, 2, 4, 5, 6

CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "one head": {"num_heads": 1, "batch_first": True},
    "no bias": {"bias": False},
    "key bias": {"add_bias_kv": True},
    "zero key": {"add_zero_attn": True, "batch_first": True},
    "both keys": {"add_bias_kv": True, "add_zero_attn": True, "bias": False},
    "own widths": {"kdim": 5, "vdim": 7},
    "own widths, no bias": {"kdim": 5, "bias": False, "batch_first": True},
    "own widths, both keys": {"vdim": 3, "add_bias_kv": True, "add_zero_attn": True},
}
WEIGHTS: dict[str, dict[str, bool]] = {
    "no weights": {"need_weights": False},
    "mean weights": {},
    "head weights": {"average_attn_weights": False},
}


def numbers(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def hides(*shape: int, seed: int = 2) -> Tensor:
    """A bool mask that leaves the first key to everyone."""
    mask = numbers(*shape, seed=seed) > 0.3
    mask[..., 0] = False
    return mask


def masks(batch: tuple[int, ...], heads: int = H) -> dict[str, dict[str, Any]]:
    """Every kind of mask for inputs with that batch shape."""
    each = (*batch, S)
    rows = (heads * (batch or (1,))[0], T, S)
    causal = torch.ones(T, S, dtype=torch.bool).triu(1)
    return {
        "none": {},
        "bool": {"attn_mask": hides(T, S)},
        "float": {"attn_mask": numbers(T, S)},
        "bool a head": {"attn_mask": hides(*rows)},
        "float a head": {"attn_mask": numbers(*rows)},
        "padding": {"key_padding_mask": hides(*each)},
        "float padding": {"key_padding_mask": numbers(*each)},
        "bool and padding": {"attn_mask": hides(T, S), "key_padding_mask": hides(*each)},
        "floats": {"attn_mask": numbers(*rows), "key_padding_mask": numbers(*each)},
        "causal": {"attn_mask": causal, "is_causal": True},
        "causal and padding": {
            "attn_mask": causal,
            "is_causal": True,
            "key_padding_mask": hides(*each),
        },
    }


MASKS = list(masks((B,)))


def make(fill, **config: Any) -> nn.MultiheadAttention:
    options = {"num_heads": H, "dtype": torch.float64} | config
    return fill(nn.MultiheadAttention(N, **options))


def inputs(module: nn.MultiheadAttention, *, batched: bool = True) -> list[Tensor]:
    """Query, key and value in the module's layout, leaves that take gradients."""
    shapes = [(T, N), (S, module.kdim), (S, module.vdim)]
    made = [numbers(B, *shape, seed=3 + i) for i, shape in enumerate(shapes)]
    if not batched:
        made = [x[0] for x in made]
    elif not module.batch_first:
        made = [x.transpose(0, 1) for x in made]
    return [x.clone().requires_grad_() for x in made]


def as_torch_names(twin: nn.Module) -> dict[str, Tensor]:
    """Gradients of the twin under the names of torch's module."""
    own = {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}
    bias = [own.pop(f"{x}_proj.bias") for x in "qkv" if f"{x}_proj.bias" in own]
    weight = [own.pop(f"{x}_proj.weight") for x in "qkv"]
    if bias:
        own["in_proj_bias"] = torch.cat(bias)
    if len({w.shape for w in weight}) == 1:
        own["in_proj_weight"] = torch.cat(weight)
    else:
        own |= {f"{x}_proj_weight": w for x, w in zip("qkv", weight, strict=True)}
    return own


def compare(source: nn.Module, twin: nn.Module, first: list[Tensor], call: dict[str, Any]) -> None:
    """Outputs, weights and all gradients agree."""
    second = [x.detach().clone().requires_grad_() for x in first]
    expected, got = source(*first, **call), twin(*second, **call)
    assert_close(got, expected)
    for out, _ in (expected, got):
        (out * numbers(*out.shape, seed=9)).sum().backward()
    assert_close([x.grad for x in second], [x.grad for x in first])
    grads = {name: p.grad for name, p in source.named_parameters() if p.grad is not None}
    assert_close(as_torch_names(twin), grads)
