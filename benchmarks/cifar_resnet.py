"""The trained CIFAR-10 ResNets, compressed without tuning and without labels."""

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import bozzetto as bz
from cifar import batches, images, resnet

KEEPS = (0.5, 0.25)
CALIBRATION = 1024  # training images, no labels


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of right answers on all test images."""
    with torch.no_grad():
        right = sum(int((model(a).argmax(1) == b).sum()) for a, b in batches(x, y, 500))
    return right / len(y)


def study(depth: int, seed: int = 0) -> dict[str, Any]:
    """Accuracy of the dense network and of what `compress` delivers."""
    torch.set_num_threads(int(os.environ.get("THREADS", "2")))
    model = resnet(depth)
    (x, _), (tx, ty) = images("train"), images("test")
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:CALIBRATION]
    calibration = list(x[chosen].split(128))
    rows: list[dict[str, Any]] = [
        {"method": "dense", "keep": 1.0, "accuracy": accuracy(model, tx, ty)}
    ]
    for keep in KEEPS:
        began = time.perf_counter()
        small, plan = bz.compress(model, keep, calibration)
        seconds = time.perf_counter() - began
        rows.append(
            {
                "method": "compress",
                "keep": keep,
                "params": plan.kept("params"),
                "flops": plan.kept("flops"),
                "accuracy": accuracy(small, tx, ty),
                "seconds": round(seconds, 1),
            }
        )
    return {"rows": rows, "test_images": len(ty), "calibration": CALIBRATION, "seed": seed}


BENCHMARKS: dict[str, Callable[[], dict[str, Any]]] = {
    "cifar10-resnet20": lambda: study(20),
    "cifar10-resnet32": lambda: study(32),
}
