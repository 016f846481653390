"""Processor seconds of tangent kernels against other implementations, one thread, interleaved.

    python benchmarks/run.py tangent-speed tangent-batchnorm tangent-empirical tangent-large

neural-tangents is timed when NEURAL_TANGENTS_PYTHON names an interpreter that has it (versions in
`tangent_peer`); without it those columns are absent. Each pair of jobs alternates, after a warm-up,
and the least of the repetitions counts.
"""

import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bozzetto.tangent import empirical_ntk, relu
from bozzetto.tangent.batchnorm import BatchNormRectifier
from bozzetto.tangent.fast import (
    Layer,
    batch_normalised_kernels,
    convolutional_kernels,
    dense_kernels,
)
from bozzetto.tangent.images import Window
from cifar import images, resnet
from tangent import draw

Timed = Callable[[], float]
REPEAT = 5


def own(job: Callable[[], object]) -> Timed:
    """Processor seconds of one call in this process."""

    def timed() -> float:
        began = time.process_time()
        job()
        return time.process_time() - began

    return timed


def alternate(jobs: dict[str, Timed], repeat: int = REPEAT) -> dict[str, float]:
    """The least seconds of each, taken in turn, after one call of each to warm up."""
    for job in jobs.values():
        job()
    rounds = [{name: job() for name, job in jobs.items()} for _ in range(repeat)]
    return {name: min(r[name] for r in rounds) for name in jobs}


class Peer:
    """neural-tangents in its process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.norms = process, dict[str, float]()

    def __call__(self, name: str) -> float:
        """Processor seconds of a kernel there; raises RuntimeError if it fails there."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        found = json.loads(self.process.stdout.readline())
        if "error" in found:
            raise RuntimeError(found["error"])
        self.norms[name] = found["norm"]
        return found["seconds"]


@contextmanager
def neural_tangents(data: dict[str, Tensor], dtype: str) -> Iterator[Peer | None]:
    """The process, if its interpreter is named; images become channels-last."""
    python = os.environ.get("NEURAL_TANGENTS_PYTHON")
    if not python:
        yield None
        return
    script = Path(__file__).with_name("tangent_peer.py")
    one = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    with tempfile.TemporaryDirectory() as folder:
        arrays = {
            k: v.movedim(1, -1).numpy() if v.ndim == 4 else v.numpy() for k, v in data.items()
        }
        np.savez(f"{folder}/data.npz", **arrays)  # type: ignore[arg-type]
        process = subprocess.Popen(
            [python, str(script), f"{folder}/data.npz", dtype],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"XLA_FLAGS": one, "JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
        try:
            yield Peer(process)
        finally:
            process.communicate()


def inputs(dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        "dense": draw(1000, 50, dtype=dtype),
        "mean": draw(8, 3, 12, 12, dtype=dtype),
        "flatten": draw(128, 3, 16, 16, dtype=dtype),
        "empirical dense": draw(32, 784, dtype=dtype),
        "empirical conv": draw(16, 3, 12, 12, dtype=dtype),
    }


def limits() -> dict[str, Any]:
    """Exact kernels: dense of 1000 inputs and depth 3, three convolutions and either readout."""
    rows = []
    for dtype in (torch.float64, torch.float32):
        name, x = str(dtype).removeprefix("torch."), inputs(dtype)
        layers = [Layer(relu, 2.0, 0.01, Window((3, 3), padding="same"))] * 3
        jobs: dict[str, Callable[[], Any]] = {
            "dense": partial(dense_kernels, x["dense"], [Layer(relu, 2.0, 0.01)] * 3),
            "mean": partial(convolutional_kernels, x["mean"], layers, pool="mean"),
            "flatten": partial(convolutional_kernels, x["flatten"], layers, pool="flatten"),
        }
        with neural_tangents(x, name) as peer:
            rows += [_limit_row(kind, name, job, peer) for kind, job in jobs.items()]
    return {"rows": rows, "repetitions": REPEAT}


def _limit_row(kind: str, dtype: str, job: Callable[[], Any], peer: Peer | None) -> dict[str, Any]:
    sides = {"seconds": own(job)} | ({"neural-tangents": partial(peer, kind)} if peer else {})
    row: dict[str, Any] = {"kernel": kind, "type": dtype} | alternate(sides)
    if peer:
        row["ratio"] = row["neural-tangents"] / row["seconds"]
        row["relative difference of norms"] = abs(float(job().ntk.norm()) / peer.norms[kind] - 1)
    return row


def batch_norm() -> dict[str, Any]:
    """One adjoint a layer against one backward pass a pair of inputs, at equal quadrature."""
    phi, rows = BatchNormRectifier(1e-6), []
    for size in (7, 12, 32):
        x = draw(size, 40)
        cov = x @ x.T / 40

        def pairs(cov: Tensor = cov, size: int = size) -> Tensor:
            value = torch.zeros_like(cov)
            for i in range(size):
                for j in range(i + 1):
                    seed = torch.zeros_like(cov)
                    seed[i, j] = seed[j, i] = 0.5 + 0.5 * (i == j)
                    value[i, j] = value[j, i] = (phi.within_pull(cov, seed) * cov).sum()
            return value + phi.within(cov)

        ours = partial(batch_normalised_kernels, x, 1, tolerance=1e-6)
        torch.testing.assert_close(ours().ntk, pairs(), rtol=1e-4, atol=1e-5)
        row = alternate({"seconds": own(ours), "pair by pair": own(pairs)}, 3)
        rows.append({"batch": size, **row, "ratio": row["pair by pair"] / row["seconds"]})
    return {"rows": rows}


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


def cnn() -> nn.Module:
    convs = [m for c in (3, 32, 32) for m in (nn.Conv2d(c, 32, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def torch_contraction(model: nn.Module, x: Tensor) -> Tensor:
    """Jacobians by torch.func, contracted parameter by parameter: (N, N, O, O)."""
    weights = {k: v.detach() for k, v in model.named_parameters()}

    def one(w: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, w, (x[None],))[0]

    parts = torch.func.vmap(torch.func.jacrev(one), (None, 0))(weights, x)
    flat = [p.flatten(2) for p in parts.values()]
    return torch.stack([torch.einsum("naf,mbf->nmab", p, p) for p in flat]).sum(0)


def torch_products(model: nn.Module, x: Tensor) -> Tensor:
    """Pairs of inputs by torch.func's vjp and jvp of basis vectors: (N, N, O, O)."""
    weights = {k: v.detach() for k, v in model.named_parameters()}

    def pair(a: Tensor, b: Tensor) -> Tensor:
        def at(x: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
            return lambda w: torch.func.functional_call(model, w, (x[None],))[0]

        out, pull = torch.func.vjp(at(a), weights)[:2]

        def product(v: Tensor) -> Tensor:
            return torch.func.jvp(at(b), (weights,), pull(v))[1]

        return torch.func.vmap(product)(torch.eye(len(out), dtype=x.dtype))

    over = torch.func.vmap(torch.func.vmap(pair, (None, 0)), (0, None))
    return over(x, x)


def empirical() -> dict[str, Any]:
    """All outputs' kernels of finite networks: ours, torch.func's two ways, neural-tangents'."""
    x, rows = inputs(torch.float32), []
    cases = {"empirical dense": mlp(), "empirical conv": cnn()}
    with neural_tangents(x, "float32") as peer:
        for name, model in cases.items():
            rows.append(_empirical_row(name, model, x[name], peer))
    rows.append(
        _empirical_row("ResNet-20", resnet(20), draw(8, 3, 32, 32, dtype=torch.float32), None)
    )
    return {"rows": rows, "repetitions": 3}


def _empirical_row(name: str, model: nn.Module, x: Tensor, peer: Peer | None) -> dict[str, Any]:
    ours = partial(empirical_ntk, model, x, outputs="each")
    contraction = partial(torch_contraction, model, x)
    torch.testing.assert_close(ours(), contraction(), rtol=1e-3, atol=1e-3)
    own_jacobian = partial(empirical_ntk, model, x, outputs="each", route="jacobian")
    mine = {"seconds": own(ours), "jacobian route": own(own_jacobian)}
    sides: dict[str, Timed] = mine | {"torch.func jacobians": own(contraction)}
    if name != "ResNet-20":  # there it takes minutes
        sides["torch.func products"] = own(partial(torch_products, model, x))
    failed = {}
    for route in ("JACOBIAN_CONTRACTION", "NTK_VECTOR_PRODUCTS", "STRUCTURED_DERIVATIVES"):
        label = f"neural-tangents {route.lower().replace('_', ' ')}"
        if peer:
            try:
                peer(f"{name} {route}")
                sides[label] = partial(peer, f"{name} {route}")
            except RuntimeError as error:
                failed[label] = str(error)
    times = alternate(sides, 3)
    best = min(seconds for side, seconds in times.items() if side not in mine)
    row: dict[str, Any] = {"network": name, "inputs": len(x), **times}
    row["ratio"] = best / times["seconds"]
    row["ratio_jacobian"] = best / times["jacobian route"]
    return row | failed


class Total(nn.Module):
    """The sum of a network's outputs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).sum(1, keepdim=True)


def large(count: int = 2000, block: int = 500) -> dict[str, Any]:
    """ResNet-20 on CIFAR-10 images: the kernel of the sum of its outputs, and peak memory."""
    x, net = images("test")[0][:count], Total(resnet(20)).eval()

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    before, began = peak(), time.process_time()
    kernel = empirical_ntk(net, x, block=block)
    seconds = time.process_time() - began
    row = {"inputs": count, "block": block, "seconds": seconds, "bytes_before": before}
    symmetric = float((kernel - kernel.T).norm() / kernel.norm())
    return {"rows": [row | {"peak_bytes": peak(), "relative_asymmetry": symmetric}]}


BENCHMARKS = {
    "tangent-large": large,
    "tangent-speed": limits,
    "tangent-batchnorm": batch_norm,
    "tangent-empirical": empirical,
}
