"""What the compressor may hold, and what planning by counts costs."""

import subprocess
import sys

import torch
from torch import nn

import bozzetto as bz
from bozzetto.prices import count_params

MEMORY = """
import resource, sys, torch
from torch import nn
import bozzetto as bz
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def net(n):
    return nn.Sequential(*(nn.Linear(n, n) for _ in range(6))).eval()
bz.compress(net(64), 0.5, [torch.randn(64, 64)], methods=("lowrank",))
before = peak()
model = net(512)
held = sum(4 * p.numel() for p in model.parameters())
bz.compress(model, 0.5, [torch.randn(512, 512)], methods=("lowrank",))
print(held, peak() - before)
"""


def test_compressing_holds_a_stated_multiple_of_the_checkpoint() -> None:
    """The weights, a copy, the small network and its float64 moments: at most sixteen times."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True
    )
    held, more = map(int, done.stdout.split())
    assert more <= 16 * held, more / held


def test_a_network_of_a_thousand_million_values_is_planned_by_counts_without_data() -> None:
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(8192, 8192, bias=False) for _ in range(16)))
    assert count_params(model) > 1e9
    small, plan = bz.sketch(model, 0.25, sides="in", ends="sketched")
    assert all(p.is_meta for p in small.parameters())
    assert 0.249 < plan.kept() <= 0.25
    assert count_params(small) == plan.small["params"]
