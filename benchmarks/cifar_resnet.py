"""The trained CIFAR-10 ResNets, made smaller without labels."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bozzetto as bz
from bozzetto.nn import for_inference
from bozzetto.train import Augmented, Progress
from cifar import CACHE, batches, images, resnet
from digit_cnn import ALL
from pretrained import OURS, Case, study, values

CALIBRATION = 1024  # training images, no labels


def show(progress: Progress) -> None:
    """Where a long tuning stands."""
    if progress.step % 100 == 0:
        print(progress.epoch, progress.step, progress.seconds_left, flush=True)


def case(depth: int, seed: int = 0) -> Case:
    """Accuracy on the test images, 5,000 for depth 32; `keep` counts the convolutions' values."""
    (x, y), (seen, labels) = images("train"), images("test")
    count = 10_000 if depth == 20 else 5_000
    test = batches(seen[:count], labels[:count], 500)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)

    def tune(small: nn.Module, target: nn.Module) -> nn.Module:
        lessons = batches(x[order[:12_800]], y[order[:12_800]], 128)
        recipe = bz.Recipe(epochs=3, lr=1e-3, distillation=0.5)
        bz.train(small, lessons, recipe, teacher=target)
        return small.eval()

    def tune_long(small: nn.Module, target: nn.Module) -> nn.Module:
        small.to(memory_format=torch.channels_last)  # pyright: ignore  # a third quicker
        loader = DataLoader(TensorDataset(x, y), 128, shuffle=True, generator=torch.Generator())
        lessons = Augmented(loader)
        recipe = bz.Recipe(epochs=6, lr=2e-3, distillation=0.9, temperature=4.0)
        state = CACHE / f"{depth}-{values(small)}.checkpoint"
        teacher = for_inference(target, x[:128])
        bz.train(small, lessons, recipe, teacher=teacher, checkpoint=state, checkpoint_every=100,
                 callbacks=[show])  # fmt: skip
        return small.eval()

    return Case(
        f"cifar10-resnet{depth}", resnet(depth), ["conv1", "layer*"],
        list(x[order[:CALIBRATION]].split(128)), lambda net: 100 * bz.evaluate(net, test),
        "accuracy %", (0.5, 0.33, 0.25, 0.125) if depth == 20 else (0.5, 0.25, 0.125), ALL,
        tune if depth == 20 else None,
        [(m, k) for k in (0.25, 0.125, 0.5) for m in (OURS, "whitened SVD", "weight Tucker")],
        tune_long if depth == 20 else None, [(OURS, k) for k in (0.25, 0.125, 0.5, 0.33)],
        ("multiply-adds", "bytes", "measured costs") if depth == 20 else (),
        (0.5, 0.25) if depth == 20 else (),
        notes={"test_images": count, "calibration": CALIBRATION, "seed": seed,
         "tuning": "3 epochs of 12,800 training images, AdamW",
         "long tuning": "6 epochs of 50,000 augmented training images, AdamW"},
    )  # fmt: skip


BENCHMARKS: dict[str, Any] = {
    "cifar10-resnet20": lambda: study(case(20)),
    "cifar10-resnet32": lambda: study(case(32)),
}
