"""The target networks of the tests, small and of every kind the library takes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class TiedLanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(120, 24)
        self.rnn = nn.LSTM(24, 24, batch_first=True)
        self.head = nn.Linear(24, 120, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, index: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(index))[0])


class Shared(nn.Module):
    """One layer at two paths."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.second = self.first
        self.out = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.second(self.first(x).relu()).relu())


def mlp() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(inplace=True), nn.Linear(64, 48), nn.Linear(48, 10)
    )
    return net, torch.randn(40, 32)


def cnn() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, padding_mode="circular"),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 32, 3, stride=2, dilation=2, groups=2, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    return net, torch.randn(24, 3, 12, 12)


def decoder() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        nn.ConvTranspose1d(8, 16, 4, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv1d(16, 8, 3, padding="same"),
    )
    return net, torch.randn(10, 8, 12)


def encoder() -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(6, 9, 32)


def language_model() -> tuple[nn.Module, Tensor]:
    return TiedLanguageModel(), torch.randint(0, 120, (6, 11))


def shared() -> tuple[nn.Module, Tensor]:
    return Shared(), torch.randn(30, 32)


def root() -> tuple[nn.Module, Tensor]:
    return nn.Linear(40, 30), torch.randn(50, 40)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    made.__name__: made for made in (mlp, cnn, decoder, encoder, language_model, shared, root)
}
