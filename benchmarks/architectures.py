"""Networks of the sizes that others publish, with random weights: ResNet-50 and ViT-B/16."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 (He et al. 2015, arXiv 1512.03385), the stride in the 3×3."""

    def __init__(self, n: int, width: int, stride: int) -> None:
        super().__init__()
        m = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(n, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, m, 1, bias=False), nn.BatchNorm2d(m),
        )  # fmt: skip
        self.side = (
            nn.Identity()
            if n == m and stride == 1
            else nn.Sequential(nn.Conv2d(n, m, 1, stride, bias=False), nn.BatchNorm2d(m))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.side(x))


def resnet50() -> nn.Module:
    """25.6 million values; (b, 3, 224, 224) -> (b, 1000)."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    n = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for i in range(blocks):
            layers.append(Bottleneck(n, width, 2 if stage and not i else 1))
            n = 4 * width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n, 1000)]
    return nn.Sequential(*layers, *head).eval()


class Block(nn.Module):
    """Self-attention and MLP, each behind a layer norm; `causal` hides what comes later."""

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        parts = (
            f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(*parts, is_causal=self.causal)
        x = x + self.o(y.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """ViT-B/16 (Dosovitskiy et al. 2020, arXiv 2010.11929); (b, 3, 224, 224) -> (b, 1000)."""

    def __init__(self, width: int = 768, depth: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 197, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, width // 64) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.first.expand(len(y), -1, -1), y], 1) + self.places
        return self.head(self.norm(self.blocks(y))[:, 0])


class Language(nn.Module):
    """A causal transformer on tokens, (b, t) of int64 -> (b, t, vocabulary)."""

    def __init__(self, vocabulary: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=True) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.table(x))))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"ResNet-50": resnet50, "ViT-B": ViT}
billion = partial(Language, 32000, 2048, 24, 16)  # 1.34 thousand million values
