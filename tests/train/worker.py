"""One of several processes that train together, started by test_processes.py."""

import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from safetensors.torch import save_file
from torch import nn
from torch.optim import AdamW

from bozzetto.optim import Interpolatron
from bozzetto.train import Progress, Recipe, train, whole_state
from bozzetto.train.checkpoint import write_checkpoint

DRAWS = torch.Generator().manual_seed(0)
X = torch.randn(43, 6, generator=DRAWS)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
BATCHES = list(zip(X.split(6), Y.split(6), strict=True))  # the last has a single sample


def mixed(groups: list[dict[str, Any]]) -> Interpolatron:
    return Interpolatron(AdamW(groups), every=2)


RECIPES = {
    "sgd": Recipe(epochs=2, optimizer="sgd", lr=0.1, clip=0.5, warmup=0.1),
    "mixed": Recipe(epochs=4, lr=0.01, optimizer=mixed, accumulate=3, ema=0.9),
    "bfloat16": Recipe(epochs=2, lr=0.01, precision="bfloat16"),
}


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 3))


def accelerator(kind: str) -> Accelerator:
    if kind == "fsdp":
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap")
        return Accelerator(cpu=True, fsdp_plugin=plugin)
    return Accelerator(cpu=True)


class Kill:
    """End the first process without a word after a step; the others then wait in vain."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, progress: Progress) -> None:
        if progress.step == self.step:
            os._exit(9)


def main(kind: str, recipe: str, folder: str, stop: str, path: str) -> None:
    """Train; `stop` is the step after which to end (0: none), `path` the checkpoint ("": none)."""
    processes, model = accelerator(kind), net()
    history = train(
        model,
        BATCHES,
        RECIPES[recipe],
        callbacks=[Kill(int(stop))] if int(stop) else [],
        checkpoint=Path(path) if path else None,
        checkpoint_every=2 if path else None,
        accelerator=processes,
    )
    state = whole_state(model)
    if processes.is_main_process:
        save_file(state, Path(folder) / "weights.safetensors")
        losses = torch.tensor(history.losses, dtype=torch.float64)
        write_checkpoint(Path(folder) / "history", {"losses": losses})
    processes.wait_for_everyone()
    processes.end_training()
