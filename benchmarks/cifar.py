"""CIFAR-10 images and the trained ResNets of `../shared/data`."""

import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"
CACHE = Path(__file__).parent / "cache"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two 3×3 convolutions and the option-A shortcut of He et al. 2015."""

    def __init__(self, n: int, m: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n, m, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(m)
        self.conv2 = nn.Conv2d(m, m, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(m)
        self.stride, self.pad = stride, (m - n) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.pad, y.shape[1] - x.shape[1] - self.pad))
        return F.relu(y + x)


class ResNet(nn.Module):
    """The CIFAR ResNet of 6·blocks + 2 layers; stages of 1, 2 and 4 times `width` channels."""

    def __init__(self, blocks: int, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        n = width
        for stage, m in enumerate((width, 2 * width, 4 * width), 1):
            made = []
            for i in range(blocks):
                made.append(Block(n, m, 2 if stage > 1 and i == 0 else 1))
                n = m
            self.add_module(f"layer{stage}", nn.Sequential(*made))
        self.linear = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet(depth: int) -> ResNet:
    """The trained network, ready to evaluate."""
    model = ResNet((depth - 2) // 6)
    model.load_state_dict(load_file(SHARED / "networks" / f"cifar10_resnet{depth}.safetensors"))
    return model.eval()


def images(split: str) -> tuple[Tensor, Tensor]:
    """All images of a split, normalised float32 (N, 3, 32, 32), and labels (N,)."""
    CACHE.mkdir(exist_ok=True)
    cached = CACHE / f"cifar10-{split}.npz"
    if not cached.exists():
        partial = cached.with_suffix(".partial.npz")
        np.savez(partial, **_decode(split))
        partial.replace(cached)
    data = np.load(cached)
    x = torch.from_numpy(data["x"]).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return x.contiguous(), torch.from_numpy(data["y"])


def _decode(split: str) -> dict[str, np.ndarray]:
    import pyarrow.parquet
    from PIL import Image

    table = pyarrow.parquet.read_table(SHARED / "cifar10" / f"{split}-00000-of-00001.parquet")
    pictures = [Image.open(io.BytesIO(row["bytes"])) for row in table["img"].to_pylist()]
    x = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return {"x": x, "y": np.asarray(table["label"].to_pylist(), dtype=np.int64)}


def batches(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """The data in order."""
    return list(zip(x.split(size), y.split(size), strict=True))
