"""The networks of the study of direct training, the data they learn, and how long they are trained.

Every builder takes a width factor, so that a narrower dense network of any size can be had.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import cifar

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"
CONTEXT = 64  # characters


@dataclass(frozen=True)
class Data:
    """What is learnt and what is judged; `flips` mirrors training images at random."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int = 10
    flips: bool = False


class Shuffled:
    """Batches in a new order every pass; the generator is the one that `bozzetto.train` seeds."""

    def __init__(self, data: Data, size: int) -> None:
        self.data, self.size, self.generator = data, size, Generator()

    def __len__(self) -> int:
        return -(-len(self.data.x) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.data.x), generator=self.generator)
        for index in order.split(self.size):
            x = self.data.x[index]
            if self.data.flips:
                mirrored = torch.rand(len(x), 1, 1, 1, generator=self.generator) < 0.5
                x = torch.where(mirrored, x.flip(-1), x)
            yield x, self.data.y[index]


@cache
def fashion(count: int) -> Data:
    """Fashion-MNIST: the first `count` training images, all 10,000 test images."""
    parts = []
    for split in ("train", "test"):
        held = np.load(SHARED / "fashion_mnist" / f"{split}.npz")
        images = torch.from_numpy(held["x"]).float().unsqueeze(1)
        parts += [(images / 255 - 0.286) / 0.353, torch.from_numpy(held["y"]).long()]
    return Data(parts[0][:count], parts[1][:count], *parts[2:])


@cache
def cifar16(count: int) -> Data:
    """CIFAR-10 at 16×16 pixels (means of 2×2): the first `count` images, all 10,000 to test."""
    (x, y), (x_test, y_test) = cifar.images("train"), cifar.images("test")
    small, test = F.avg_pool2d(x[:count], 2), F.avg_pool2d(x_test, 2)
    return Data(small, y[:count], test, y_test, flips=True)


@cache
def topics(count: int) -> Data:
    """The language reference that Python ships (pydoc_data.topics): next characters.

    `count` windows drawn from the first nine tenths; the last tenth is judged.
    """
    from pydoc_data.topics import topics as pages

    text = "\n".join(pages[name] for name in sorted(pages))
    known = {c: i for i, c in enumerate(sorted(set(text)))}
    codes = torch.tensor([known[c] for c in text])
    cut = len(codes) * 9 // 10
    starts = torch.randint(cut - CONTEXT, (count,), generator=Generator().manual_seed(0))
    tests = torch.arange(cut, len(codes) - CONTEXT, CONTEXT)[:1000]
    offsets = torch.arange(CONTEXT + 1)
    train, test = codes[starts[:, None] + offsets], codes[tests[:, None] + offsets]
    return Data(train[:, :-1], train[:, 1:], test[:, :-1], test[:, 1:], len(known))


def wide(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def mlp(width: float) -> nn.Module:
    h = wide(512, width)
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(784, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU()),
        nn.Linear(h, 10),
    )


def unit(n: int, m: int, taps: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(n, m, taps, stride, taps // 2, bias=False)
    return [conv, nn.BatchNorm2d(m), nn.ReLU()]


def cnn(width: float) -> nn.Module:
    a, b, h = wide(32, width), wide(64, width), wide(128, width)
    return nn.Sequential(
        *(nn.Conv2d(1, a, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(b, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(b * 9, h), nn.ReLU(), nn.Linear(h, 10)),
    )


def nin(width: float) -> nn.Module:
    """Network in network (Lin et al. 2014) in small, with batch norm."""
    a, b = wide(48, width), wide(96, width)
    return nn.Sequential(
        *(*unit(3, a, 5), *unit(a, a, 1), nn.MaxPool2d(2)),
        *(*unit(a, b, 3), *unit(b, b, 1), nn.MaxPool2d(2)),
        *(*unit(b, b, 3), *unit(b, b, 1), nn.Conv2d(b, 10, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


def resnet20(width: float) -> nn.Module:
    return cifar.ResNet(3, wide(16, width))


class Attention(nn.Module):
    """Causal attention of four heads, with a linear layer for each of its four maps."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        heads = (
            layer(x).unflatten(-1, (4, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A layer of a transformer, normalised before each half."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(d), nn.LayerNorm(d), Attention(d)
        self.feed = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed(self.norm2(x))


class Transformer(nn.Module):
    """Characters to scores of the next one, (b, t) -> (b, t, c)."""

    def __init__(self, width: float) -> None:
        super().__init__()
        d, c = 4 * wide(16, width), topics(1).classes
        self.embedding, self.place = nn.Embedding(c, d), nn.Parameter(torch.zeros(CONTEXT, d))
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.layers = nn.Sequential(Layer(d), Layer(d))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, c)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.embedding(x) + self.place)))


@dataclass(frozen=True)
class Problem:
    """A network, its data, and how it is trained (AdamW, cosine)."""

    network: Callable[[float], nn.Module]
    data: Callable[[int], Data]
    count: int  # of training samples
    batch: int
    epochs: int
    rate: float  # the highest learning rate


PROBLEMS = {
    "direct-mlp": Problem(mlp, fashion, 20_000, 128, 3, 6e-3),
    "direct-cnn": Problem(cnn, fashion, 10_000, 128, 4, 6e-3),
    "direct-resnet20": Problem(resnet20, cifar16, 6_000, 128, 5, 6e-3),
    "direct-nin": Problem(nin, cifar16, 6_000, 128, 4, 6e-3),
    "direct-transformer": Problem(Transformer, topics, 16_000, 16, 1, 3e-3),
}
