"""DnCNN, a denoiser, on the middle of the twelve standard images at σ = 25."""

from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import bozzetto as bz
from cifar import SHARED
from pretrained import OURS, Case, study

SIGMA = 25 / 255


def network() -> nn.Module:
    """17 convolutions; the output is the noise."""
    parts: list[nn.Module] = []
    for i in range(17):
        parts += [nn.Conv2d(64 if i else 1, 64 if i < 16 else 1, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*parts[:-1])
    state = load_file(SHARED / "networks" / "dncnn_25.safetensors")
    model.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    return model.eval()


def noisy(image: Tensor, generator: torch.Generator) -> Tensor:
    """The image with Gaussian noise."""
    return image + SIGMA * torch.randn(image.shape, generator=generator)


def middle(image: Tensor, size: int = 128) -> Tensor:
    """The middle of an image (1, 1, h, w)."""
    top, left = ((n - size) // 2 for n in image.shape[2:])
    return image[..., top : top + size, left : left + size]


def patches(count: int, size: int = 48) -> Tensor:
    """Grey patches of the two photographs that scikit-learn ships, (count, 1, size, size)."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    pictures = [np.asarray(p).mean(2) / 255 for p in load_sample_images().images]
    found = []
    for i in range(count):
        picture = pictures[i % len(pictures)]
        top, left = (int(rng.integers(0, n - size)) for n in picture.shape)
        found.append(picture[top : top + size, left : left + size])
    return torch.from_numpy(np.stack(found)).float().unsqueeze(1)


def case() -> Case:
    """Mean PSNR in dB over the middle 128 × 128 pixels of Set12; dense 30.43 on whole images."""
    from PIL import Image

    model, generator = network(), torch.Generator().manual_seed(0)
    pictures = [
        torch.from_numpy(np.array(Image.open(file).convert("L"))).float()[None, None] / 255
        for file in sorted((SHARED / "set12").glob("*.png"))
    ]
    pictures = [middle(picture) for picture in pictures]
    pairs = [(clean, noisy(clean, generator)) for clean in pictures]
    clean = patches(512)
    seen = noisy(clean, generator)

    @torch.no_grad()
    def metric(net: nn.Module) -> float:
        errors = [((x - net(x)).clamp(0, 1) - y).square().mean() for y, x in pairs]
        return float(np.mean([-10 * np.log10(float(e)) for e in errors]))

    def tune(small: nn.Module, target: nn.Module) -> nn.Module:
        recipe = bz.Recipe(epochs=2, loss="mse", distillation=1.0, lr=3e-4)
        bz.train(small, [(part, None) for part in seen.split(16)], recipe, teacher=target)
        return small.eval()

    peers = ("plain SVD", "whitened SVD", "weight Tucker", "unbiased estimate")
    return Case(
        "dncnn-set12", model, ["*"], list(seen[:8].split(4)), metric, "PSNR dB",
        (0.5, 0.25, 0.125), peers, tune,
        [(m, k) for k in (0.25, 0.125) for m in (OURS, "whitened SVD", "weight Tucker")],
        bounds=(),  # all layers run at one resolution: values and multiply-adds are kept alike
        notes={"calibration": 8, "patch": 48, "tuning": "2 epochs of 512 patches"},
    )  # fmt: skip


BENCHMARKS: dict[str, Any] = {"dncnn-set12": lambda: study(case())}
