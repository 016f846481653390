"""What compressing takes: seconds and memory of ResNet-20 and MiniLM, each in a process of its own.

Memory is the growth of the process's peak resident set over what it held with the model and the
calibration data loaded (Linux). Beside it stands what one backward pass of one batch needs alone,
which any statistic of gradients needs. MiniLM needs what `minilm.py` needs.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bozzetto as bz
from bozzetto.batches import call, tensors
from bozzetto.moments import SketchedMoment
from bozzetto.prices import count_bytes
from peers import compressible
from pretrained import Case, of_layers, values

KEEP = 0.5  # of the values of the layers that may change
MIB = 2**20
NETWORKS = ("cifar10-resnet20", "minilm-stsb")


def _case(name: str) -> Case:
    if name == "minilm-stsb":
        from minilm import case

        return case()
    from cifar_resnet import case

    return case(20)


def _held(what: str) -> float:
    """MiB of the process: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1024


def _growth(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and MiB by which the peak rises above what was held before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    before, began = _held("VmRSS"), time.perf_counter()
    run()
    return time.perf_counter() - began, _held("VmHWM") - before


def _backward(model: nn.Module, batch: Any) -> None:
    total = torch.zeros(())
    for y in tensors(call(model, batch)):
        total = total + y.sum()
    trained = [p for p in model.parameters() if p.requires_grad]
    torch.autograd.grad(total, trained, allow_unused=True)  # a pooler may have no part in it


def _bytes_of(moment: Any) -> int:
    if isinstance(moment, SketchedMoment):
        return moment.product.nbytes + moment.diagonal.nbytes
    return moment.nbytes if isinstance(moment, Tensor) else 0


def measure(name: str) -> dict[str, Any]:
    """Seconds and MiB of one network."""
    torch.set_num_threads(int(os.environ.get("THREADS", "2")))
    case = _case(name)
    _, alone = _growth(lambda: _backward(case.model, case.calibration[0]))
    threads = torch.get_num_threads()
    sites = compressible(case.model, case.layers).values()
    budget = of_layers(KEEP, sum(s.map.weight.numel() for s in sites), values(case.model))
    cpu = time.process_time()
    seconds, peak = _growth(
        lambda: bz.compress(case.model, budget, case.calibration, layers=case.layers)
    )
    cpu = time.process_time() - cpu
    stats = bz.collect(case.model, case.calibration[:1])
    largest = max(max(_bytes_of(s.moment), _bytes_of(s.gradient)) for s in stats.values())
    allowed = 3 * count_bytes(case.model) + largest
    return {
        "network": name,
        "keep": KEEP,
        "seconds": round(seconds, 1),
        "processor_seconds": round(cpu, 1),
        "threads": threads,
        "peak_MiB": round(peak, 1),
        "a_backward_pass_MiB": round(alone, 1),
        "model_MiB": round(count_bytes(case.model) / MIB, 1),
        "largest_moment_MiB": round(largest / MIB, 1),
        "3_models_and_the_largest_moment_MiB": round(allowed / MIB, 1),
    }


def study() -> dict[str, Any]:
    """A process for each network."""
    rows = []
    for name in NETWORKS:
        run = subprocess.run(
            [sys.executable, __file__, name], check=True, capture_output=True, text=True
        )
        rows.append(json.loads(run.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    return {"rows": rows, "table": {row["network"]: row for row in rows}}


BENCHMARKS: dict[str, Any] = {"compress-costs": study}

if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
