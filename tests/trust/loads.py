"""Load: many networks in a row, a plan for billions of values, a long evaluation.

python tests/trust/loads.py row     # prints JSON; also plan, soak, outliers
"""

import ctypes
import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bozzetto as bz

PAGE = resource.getpagesize()


def resident() -> int:
    """Bytes of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 9)
    )


def growth(work: Callable[[], object], windows: int) -> tuple[list[float], list[int]]:
    """Megabytes and Python's objects that the process holds more after each doing of the same work.

    Do the work once before. What leaks grows every time, so that the least of the growths tells;
    the allocator of a process that has lived long may take some tens of megabytes at one of them.
    """
    marks = [held()]
    for _ in range(windows):
        work()
        marks.append(held())
    steps = list(pairwise(marks))
    return [(b[0] - a[0]) / 1e6 for a, b in steps], [b[1] - a[1] for a, b in steps]


def held() -> tuple[int, int]:
    """Bytes and objects that the process holds, when garbage and freed memory are given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else new tensors would go unseen into what old ones left
    return resident(), len(gc.get_objects())


def in_a_row(warm: int, windows: int, each: int) -> dict[str, Any]:
    """Compress, save nothing, forget; growths after `warm`, in windows of `each` networks."""
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))

    def some(count: int) -> None:
        for _ in range(count):
            bz.compress(network(), 0.5, [x])

    some(warm)
    memory, objects = growth(lambda: some(each), windows)
    return {
        "networks": warm + windows * each, "after": warm,
        "grown_megabytes": sum(memory), "least_megabytes": min(memory),
        "grown_objects": sum(objects), "least_objects": min(objects),
    }  # fmt: skip


class Block(nn.Module):
    """A block of a language model, its attention left out: its matrices are what counts."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.mixed, self.norm = nn.Linear(d, d), nn.LayerNorm(d)
        self.out, self.up, self.down = nn.Linear(d, d), nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(self.mixed(self.norm(x)))
        return x + self.down(torch.relu(self.up(x)))


class Large(nn.Module):
    """2.2 billion values at the width and depth that are the defaults."""

    def __init__(self, d: int = 2560, depth: int = 30, words: int = 50_000) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(words, d), nn.Linear(d, words, bias=False)
        self.blocks = nn.ModuleList(Block(d) for _ in range(depth))

    def forward(self, index: Tensor) -> Tensor:
        x = self.table(index)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def large_plan(d: int = 2560, depth: int = 30) -> dict[str, Any]:
    """A quarter of a network that no memory holds, on the meta device."""
    found: dict[str, Any] = {}
    memory, _ = growth(lambda: found.update(_large_plan(d, depth)), 1)
    return found | {"grown_megabytes": memory[0]}


def _large_plan(d: int, depth: int) -> dict[str, Any]:
    with torch.device("meta"):
        model = Large(d, depth)
    began = time.perf_counter()
    small, plan = bz.sketch(model, 0.25)
    seconds = time.perf_counter() - began
    assert {p.device.type for p in small.parameters()} == {"meta"}
    assert bz.Plan.from_json(plan.to_json()) == plan
    counted = sum(p.numel() for p in small.parameters())
    assert counted == plan.small["params"] <= 0.25 * plan.target["params"]
    return {
        "values": plan.target["params"], "kept": plan.kept(), "layers": len(plan.choices),
        "seconds_to_plan": seconds,
    }  # fmt: skip


def soak(warm: int, windows: int, each: int) -> dict[str, Any]:
    """Evaluate over and over: always the same number, and no more memory."""
    model = network()
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    batches = [(x, x.sum(-1).gt(0).long())] * 4
    values: set[float] = set()

    def some(passes: int) -> None:
        values.update(bz.evaluate(model, batches) for _ in range(passes))

    some(warm)
    memory, _ = growth(lambda: some(each), windows)
    return {
        "passes": warm + windows * each, "different_values": len(values), "after": warm,
        "grown_megabytes": sum(memory), "least_megabytes": min(memory),
    }  # fmt: skip


def with_outlier(model: nn.Module, x: Tensor, factor: float) -> tuple[nn.Module, Tensor]:
    """The same function of the same inputs, of which one channel is larger by a factor."""
    with torch.no_grad():
        model.get_parameter("0.weight")[:, 5] /= factor
    scale = torch.ones(x.shape[1])
    scale[5] = factor
    return model, x * scale


def outliers() -> dict[str, Any]:
    """Relative errors at half the values, with and without a channel that is 1000 times larger."""
    x = torch.randn(400, 64, generator=torch.Generator().manual_seed(1))
    found: dict[str, float] = {}
    for name, factor in (("even", 1.0), ("outlier", 1e3)):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model, inputs = with_outlier(network(), x, factor)
        small, _ = bz.compress(model, 0.5, [inputs])
        with torch.no_grad():
            want = model(inputs)
            found[name] = float((small(inputs) - want).norm() / want.norm())
    return found


LOADS: dict[str, Callable[[], dict[str, Any]]] = {
    "row": lambda: in_a_row(40, 4, 40),
    "plan": large_plan,
    "outliers": outliers,
    "soak": lambda: soak(1000, 19, 1000),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(LOADS[sys.argv[1]]()))
