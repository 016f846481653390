"""The demo's data, scikit-learn's handwritten digits, and the network that is trained on them."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bozzetto as bz
from bozzetto.linalg import seeded

__all__ = ["calibration", "held_out", "network", "target"]

Loader = DataLoader[tuple[Tensor, ...]]

TRAINED = 1200  # of 1797 images; the others test


def network(seed: int = 0, *, width: int = 32) -> nn.Module:
    """A CNN with a wide fully connected part, not trained: (b, 1, 8, 8) -> (b, 10)."""
    c1, c2, c3, wide = width, 2 * width, 4 * width, 20 * width
    with seeded(seed, torch.device("cpu")):
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(1, c1, 3, padding=1),
                act1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(c1, c2, 3, padding=1),
                act2=nn.ReLU(),
                conv3=nn.Conv2d(c2, c3, 3, padding=1),
                act3=nn.ReLU(),
                pool3=nn.MaxPool2d(2),
                flat=nn.Flatten(),
                wide=nn.Linear(4 * c3, wide),
                act4=nn.ReLU(),
                out=nn.Linear(wide, 10),
            )
        )


def target(seed: int = 0, *, width: int = 32, epochs: int = 14) -> nn.Module:
    """The network, trained on the digits of `calibration`."""
    model = network(seed, width=width)
    bz.train(model, calibration(seed), bz.Recipe(epochs=epochs, lr=2e-3, seed=seed))
    return model


def calibration(seed: int = 0) -> Loader:
    """The 1200 training digits of a seed's split as batches (images, labels)."""
    return _loader(seed, slice(None, TRAINED))


def held_out(seed: int = 0) -> Loader:
    """The 597 other digits."""
    return _loader(seed, slice(TRAINED, None))


def _loader(seed: int, part: slice) -> Loader:
    """Images (b, 1, 8, 8) in [0, 1] and labels (b,), in an order that is drawn for every pass."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.as_tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.as_tensor(labels, dtype=torch.int64)
    chosen = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[part]
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(x[chosen], y[chosen]), 64, shuffle=True, generator=generator)
