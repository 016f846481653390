"""What compressing holds at its peak, in a process of its own: a few models, and few moments."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MEASURED = """
import json
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

import bozzetto as bz
from bozzetto.grouped import moment_bytes
from bozzetto.prices import count_bytes
from bozzetto.stats import layer_maps

compressing = import_module("bozzetto.compress")


def held(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(what)).split()[1])


def peak(run):
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    before = held("VmRSS")
    run()
    return held("VmHWM") - before


def network(depth):
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(depth))).eval()


torch.set_num_threads(1)
WIDTH = 128
x = torch.randn(8, WIDTH)
model = network(100)
bz.compress(network(2), 0.5, [x], methods=("lowrank",))  # what libraries load for the first time
compressing._HELD = 1
moments = [moment_bytes(m) for m in layer_maps(model).values()]
grown = peak(lambda: bz.compress(model, 0.5, [x], methods=("lowrank",)))
compressing.count_bytes = lambda _: sum(moments)  # all moments at once
whole = peak(lambda: bz.compress(model, 0.5, [x], methods=("lowrank",)))
print(json.dumps({"model": count_bytes(model), "moments": sum(moments), "largest": max(moments),
                  "grown": grown, "whole": whole}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_a_network_is_compressed_in_three_times_its_memory_and_few_moments() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURED],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "32768"},  # what is freed is given back
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["moments"] > 3 * found["model"]
    assert found["grown"] < 3 * found["model"] + 12 * found["largest"], found
    assert found["whole"] > found["moments"], found  # the measurement sees them
