"""Tangent kernels: convergence, the sketch's limit, speed, and alignment as a training-free score.

    python benchmarks/run.py tangent-convergence

`tangent-speed` also times neural-tangents when NEURAL_TANGENTS_PYTHON names an interpreter that has
it (versions in its docstring below); without it those columns are absent.
"""

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

import bozzetto as bz
from bozzetto.analysis.kernel import alignment
from bozzetto.batches import in_mode
from bozzetto.tangent import (
    Erf,
    Input,
    Matrix,
    Program,
    Realised,
    Vector,
    apply,
    empirical_ntk,
    relu,
)
from bozzetto.tangent.batchnorm import BatchNormRectifier
from bozzetto.tangent.blocks import (
    batch_norm_relu,
    dense,
    readout,
    recurrent,
    sketched,
    transformer_block,
)
from bozzetto.tangent.fast import (
    Layer,
    batch_normalised_kernels,
    convolutional_kernels,
    dense_kernels,
)
from bozzetto.tangent.images import Image, Window
from digits import Block, digits, mlp


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def chain() -> Vector:
    h: Vector = Input(5, 1)
    for i in range(3):
        h = apply(relu, dense(h, str(i), variance=2, bias=0.1))
    return readout(h)


def convolutions() -> Vector:
    image = Image(Input(3, 16), (4, 4))
    for i in range(2):
        image = image.convolve(Window((3, 3), padding="same"), name=str(i), variance=2, bias=0.1)
        image = image.map(apply(relu, image.vector))
    return readout(image.mean())


NETWORKS: dict[str, tuple[Vector, tuple[int, ...]]] = {
    "MLP": (chain(), (3, 1, 5)),
    "CNN": (convolutions(), (3, 16, 3)),
    "RNN": (readout(recurrent(Input(3, 5), Erf(), input_variance=2, bias=0.2).mean()), (3, 5, 3)),
    "transformer": (readout(transformer_block(Input(3, 5), relu).mean()), (3, 5, 3)),
    "batch norm": (readout(batch_norm_relu(Matrix("W") @ Input(10, 8))), (1, 8, 10)),
}
WIDTHS = (64, 256, 1024, 2048)


def slope(widths: tuple[int, ...], errors: list[float]) -> float:
    return float(np.polyfit(np.log(widths), np.log(errors), 1)[0])


def distance(kernels: Iterator[Tensor], limit: Tensor) -> float:
    return float(torch.stack([(k - limit).norm() / limit.norm() for k in kernels]).mean())


def convergence(seeds: int = 20) -> dict[str, Any]:
    """Mean relative distance of finite tangent kernels from the limit, by width."""
    rows = []
    for name, (output, shape) in NETWORKS.items():
        program, x = Program(output), draw(*shape)
        limit = program.ntk(x)
        each = "each" if limit.ndim == 4 else "mean"
        errors = [
            distance(
                (
                    empirical_ntk(Realised(program, n, seed=s), x, outputs=each)
                    for s in range(seeds)
                ),
                limit,
            )
            for n in WIDTHS
        ]
        rows.append({"network": name, **dict(zip(map(str, WIDTHS), errors, strict=True))})
        rows[-1]["slope"] = slope(WIDTHS, errors)
    return {"rows": rows, "seeds": seeds}


def sketch_limit(seeds: int = 20) -> dict[str, Any]:
    """Networks with a sketched hidden layer against the dense limit: k = n/4, and k = 16 fixed."""
    x, widths = draw(3, 5), (128, 512, 2048)

    def network(layer: Callable[[Vector], Vector]) -> Program:
        h = apply(relu, dense(Input(5, 1), "in", variance=2))
        return Program(readout(apply(relu, layer(h))))

    full = network(lambda h: dense(h, variance=2))
    limit, rows = full.ntk(x), []
    cases: dict[str, Callable[[int], int]] = {
        "dense": lambda n: n,
        "k = n/4": lambda n: n // 4,
        "k = 16": lambda _: 16,
    }
    for name, core in cases.items():
        row: dict[str, Any] = {"layer": name}
        for n in widths:
            k = core(n)
            program = (
                full
                if name == "dense"
                else network(lambda h, kept=k / n: sketched(h, variance=2, kept=kept))
            )
            found = [
                empirical_ntk(Realised(program, {"n": n, "n/k": k}, seed=s), x)
                for s in range(seeds)
            ]
            row[f"error {n}"] = distance(iter(found), limit)
            row[f"trace {n}"] = float(torch.stack(found).mean(0).trace() / limit.trace())
        rows.append(row)
    return {"rows": rows, "seeds": seeds}


def best(job: Callable[[], object], repeat: int = 5) -> float:
    """Seconds of the quickest of several runs, after one to warm up."""
    job()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return min(times)


NEURAL_TANGENTS = """
import sys, time, json
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", sys.argv[2] == "float64")
from neural_tangents import stax
data = np.load(sys.argv[1])
S = 2 ** 0.5
def conv():
    return [stax.Conv(64, (3, 3), padding="SAME", W_std=S, b_std=0.1), stax.Relu()]
nets = {
    "dense": [stax.Dense(64, S, 0.1), stax.Relu()] * 3 + [stax.Dense(1)],
    "mean": conv() * 3 + [stax.GlobalAvgPool(), stax.Dense(1)],
    "flatten": conv() * 3 + [stax.Flatten(), stax.Dense(1)],
}
out = {}
for name, layers in nets.items():
    x = jnp.array(data[name].astype(sys.argv[2]))
    kernel = jax.jit(lambda x, f=stax.serial(*layers)[2]: f(x, None, "ntk"))
    value = np.asarray(kernel(x).block_until_ready())
    times = []
    for _ in range(5):
        t = time.perf_counter()
        kernel(x).block_until_ready()
        times.append(time.perf_counter() - t)
    out[name] = [min(times), float(np.trace(value)), float(np.linalg.norm(value))]
print(json.dumps(out))
"""


def neural_tangents(data: dict[str, np.ndarray], dtype: str) -> dict[str, list[float]]:
    """Seconds, trace and norm of each kernel by neural-tangents 0.6.5 on jax 0.4.30, if there."""
    import json
    import tempfile

    python = os.environ.get("NEURAL_TANGENTS_PYTHON")
    if not python:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/data.npz", **data)
        command = [python, "-c", NEURAL_TANGENTS, f"{folder}/data.npz", dtype]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def speed() -> dict[str, Any]:
    """Seconds for exact kernels: dense n = 1000 depth 3, convolutions, batch norm."""
    rows = []
    for dtype in (torch.float64, torch.float32):
        name = str(dtype).removeprefix("torch.")
        x = {
            "dense": draw(1000, 50, dtype=dtype),
            "mean": draw(16, 3, 16, 16, dtype=dtype),
            "flatten": draw(128, 3, 16, 16, dtype=dtype),
        }
        layers = [Layer(relu, 2.0, 0.01, Window((3, 3), padding="same"))] * 3
        jobs: dict[str, Callable[[], Any]] = {
            "dense": partial(dense_kernels, x["dense"], [Layer(relu, 2.0, 0.01)] * 3),
            "mean": partial(convolutional_kernels, x["mean"], layers, pool="mean"),
            "flatten": partial(convolutional_kernels, x["flatten"], layers, pool="flatten"),
        }
        images = {k: v.movedim(1, -1).numpy() if v.ndim == 4 else v.numpy() for k, v in x.items()}
        theirs = neural_tangents(images, name)
        for kind, job in jobs.items():
            row: dict[str, Any] = {"kernel": kind, "type": name, "seconds": best(job)}
            if theirs:
                norm = float(job().ntk.norm())
                row["neural-tangents"] = theirs[kind][0]
                row["ratio"] = theirs[kind][0] / row["seconds"]
                row["relative difference of norms"] = abs(norm / theirs[kind][2] - 1)
            rows.append(row)
    return {"rows": [*rows, *batch_norm_speed()]}


def batch_norm_speed() -> list[dict[str, Any]]:
    """One adjoint a layer against one backward pass a pair of inputs, at equal accuracy."""
    phi, rows = BatchNormRectifier(1e-6), []
    for size in (7, 12, 32):
        x = draw(size, 40)
        cov = x @ x.T / 40

        def pairs(cov: Tensor = cov, size: int = size) -> None:
            for i in range(size):
                for j in range(i + 1):
                    seed = torch.zeros(size, size, dtype=torch.float64)
                    seed[i, j] = 1.0
                    (phi.within_pull(cov, seed) * cov).sum()

        ours = best(partial(batch_normalised_kernels, x, 1, tolerance=1e-6))
        slow = best(pairs, 1)
        kernel = f"batch norm, batch {size}"
        rows.append({"kernel": kernel, "seconds": ours, "pair by pair": slow, "ratio": slow / ours})
    return rows


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 10),
    )  # fmt: skip


def small_resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        Block(12, 12, 1), Block(12, 24, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(24, 10),
    )  # fmt: skip


def fitted(
    model: nn.Module, x: Tensor, y: Tensor, *, epochs: int, seed: int, lr: float
) -> nn.Module:
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(64):
            optimiser.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
    return model.eval()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def random_plan(model: nn.Module, made: bz.Plan, generator: torch.Generator) -> bz.Plan:
    """The same layers at sizes between a tenth of and three times those of the plan."""
    factors = 10 ** (torch.rand(len(made.choices), generator=generator) * 1.5 - 1.0)
    choices = {}
    for (path, choice), factor in zip(made.choices.items(), factors.tolist(), strict=True):
        weight = model.get_parameter(f"{path}.weight").flatten(1)
        size = min(*weight.shape, max(1, int(choice.size * factor)))
        choices[path] = replace(choice, size=size)
    return replace(made, choices=choices, small={})  # no totals: they are not those of the plan


def scores(
    model: nn.Module, small: nn.Module, x: Tensor, y: Tensor, kernel: Tensor
) -> dict[str, float]:
    """Each larger for a better plan."""
    with torch.no_grad(), in_mode(small, training=False):
        target, now = model(x), small(x)
        loss = float(F.cross_entropy(now, y))
        function = float((now - target).norm() / target.norm())
        agreement = float((now.argmax(1) == target.argmax(1)).float().mean())
    return {
        "alignment": alignment(kernel, empirical_ntk(small, x)),
        "function": -function,
        "agreement": agreement,
        "loss": -loss,
        "parameters": float(sum(p.numel() for p in small.parameters())),
    }


def alignment_study(plans: int = 22, inputs: int = 100) -> dict[str, Any]:
    """Spearman of training-free scores with the accuracy after training, over random plans."""
    x, y, x_test, y_test = digits()
    rows = []
    for name, build in (("MLP", mlp), ("CNN", small_cnn), ("ResNet", small_resnet)):
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(0)
            model = build()
        fitted(model, x, y, epochs=20, seed=0, lr=2e-3)
        calibration = [(x[:256], y[:256])]
        stats = bz.collect(model, calibration, loss=F.cross_entropy)
        made = bz.plan(model, stats, bz.Budget(params=0.3), methods=("lowrank",))
        kernel = empirical_ntk(model, x[:inputs])
        generator, found = torch.Generator().manual_seed(1), []
        for i in range(plans):
            small = bz.rebuild(model, random_plan(model, made, generator), stats).eval()
            found.append(scores(model, small, x[:inputs], y[:inputs], kernel))
            found[-1]["before"] = accuracy(small, x_test, y_test)
            fitted(small, x, y, epochs=8, seed=i, lr=2e-3)
            found[-1]["accuracy"] = accuracy(small, x_test, y_test)
        row: dict[str, Any] = {
            "network": name,
            "plans": plans,
            "target": accuracy(model, x_test, y_test),
        }
        after = [f["accuracy"] for f in found]
        row |= {"lowest": min(after), "highest": max(after)}
        for score in ("alignment", "function", "agreement", "loss", "parameters"):
            row[score] = float(spearmanr([f[score] for f in found], after).statistic)
        rows.append(row)
    return {"rows": rows}


BENCHMARKS: dict[str, Callable[[], dict[str, Any]]] = {
    "tangent-convergence": convergence,
    "tangent-sketch": sketch_limit,
    "tangent-speed": speed,
    "tangent-alignment": alignment_study,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for row in BENCHMARKS[sys.argv[1]]()["rows"]:
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
