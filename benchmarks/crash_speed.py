"""How fast faults are injected: fault patterns a second, one thread.

PyTorchFI is for the comparison only: pip install --no-deps --target DIR pytorchfi==0.6.0, and
PYTHONPATH=DIR.
"""

import itertools
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bozzetto.analysis.crash import crash, critical_neurons
from crash import trained
from digits import digits


def hook_loop(net: nn.Module, x: Tensor, p: float, patterns: int) -> float:
    """Patterns a second when every pattern is one run of a model with hooks that crash neurons."""
    acts = [m for m in net.modules() if isinstance(m, nn.ReLU | nn.Tanh | nn.Sigmoid)]
    generator = torch.Generator().manual_seed(0)

    def strike(module: nn.Module, args: object, out: Tensor) -> Tensor:
        return out * (torch.rand(out.shape[1:], generator=generator) >= p)

    start = time.perf_counter()
    hooks = [act.register_forward_hook(strike) for act in acts]
    with torch.no_grad():
        for _ in range(patterns):
            net(x)
    [hook.remove() for hook in hooks]
    return patterns / (time.perf_counter() - start)


def speed() -> dict:
    """Fault patterns a second, one thread: injection against a loop of hooks, interleaved."""
    _, _, test, _ = digits()
    rows = []
    for name, b in itertools.product(("relu 64×4", "conv"), (1, 8, 64)):
        net, x = trained(name), test[:b]
        ours, loop = [], []
        for seed in range(5):
            start = time.perf_counter()
            crash(net, [x], 0.01, patterns=2000, seed=seed)
            ours.append(2000 / (time.perf_counter() - start))
            loop.append(hook_loop(net, x, 0.01, 300))
        best = max(ours), max(loop)
        rows.append(
            {"net": name, "inputs": b, "ours": best[0], "loop": best[1], "ratio": best[0] / best[1]}
        )
    return {"rows": rows}


def pytorchfi() -> dict:
    """Single-neuron fault patterns a second on the conv net, against PyTorchFI 0.6.0."""
    from pytorchfi.core import fault_injection  # pip install --no-deps pytorchfi

    _, _, test, _ = digits()
    net, places, rows = trained("conv"), ((0, 8, 8, "1"), (1, 16, 4, "4")), []
    generator = torch.Generator().manual_seed(0)
    for b in (1, 8):
        x = test[:b]
        peer = fault_injection(net, b, input_shape=[1, 8, 8], layer_types=[nn.Conv2d])
        start = time.perf_counter()
        for i in range(200):
            layer, channels, side, _ = places[i % 2]
            c, h, w = (
                int(torch.randint(n, (), generator=generator)) for n in (channels, side, side)
            )
            broken = peer.declare_neuron_fi(
                batch=list(range(b)),
                layer_num=[layer] * b,
                dim1=[c] * b,
                dim2=[h] * b,
                dim3=[w] * b,
                value=[0] * b,
            )
            with torch.no_grad():
                broken(x)
        theirs = 200 / (time.perf_counter() - start)
        start = time.perf_counter()
        scores = critical_neurons(net, [x], layers=["1", "4"], rows=2048).scores
        ours = sum(v.numel() for v in scores.values()) / (time.perf_counter() - start)
        rows.append({"inputs": b, "ours": ours, "pytorchfi": theirs, "ratio": ours / theirs})
    return {"rows": rows}


BENCHMARKS: dict[str, Callable[[], dict]] = {"crash-speed": speed, "crash-pytorchfi": pytorchfi}
