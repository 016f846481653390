"""What max pooling chooses from."""

import math
from typing import Any

import torch
from torch import Tensor, nn


def windows(module: Any, x: Tensor) -> Tensor:
    """Entries of every window, padded with −∞: (b, c, *s) -> (b, entries, c, *out)."""
    axes = x.ndim - 2
    size, stride, pad, gap = (
        (v,) * axes if isinstance(v, int) else tuple(v)
        for v in (module.kernel_size, module.stride, module.padding, module.dilation)
    )
    out = module(x).shape[2:]
    ends = [
        (o - 1) * s + g * (k - 1) + 1 for o, s, g, k in zip(out, stride, gap, size, strict=True)
    ]
    border = [
        side
        for n, p, end in reversed(list(zip(x.shape[2:], pad, ends, strict=True)))
        for side in (p, max(end - n - p, 0))
    ]
    x = nn.functional.pad(x, border, value=-math.inf)
    entries = []
    for at in torch.cartesian_prod(*[torch.arange(k) for k in size]).reshape(-1, axes).tolist():
        cut = [
            slice(i * g, i * g + (o - 1) * s + 1, s)
            for i, g, o, s in zip(at, gap, out, stride, strict=True)
        ]
        entries.append(x[(..., *cut)])
    return torch.stack(entries, 1)
