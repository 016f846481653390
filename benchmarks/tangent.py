"""Tangent kernels of finite networks approach their limits, those of sketched networks too.

python benchmarks/run.py tangent-convergence tangent-sketch
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
from bozzetto.tangent.blocks import (
    batch_norm_relu,
    dense,
    readout,
    recurrent,
    sketched,
    transformer_block,
)
from bozzetto.tangent.images import Image, Window


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
WIDTHS = (64, 256, 1024)


def slope(widths: tuple[int, ...], errors: list[float]) -> float:
    return float(np.polyfit(np.log(widths), np.log(errors), 1)[0])


def distance(kernels: Iterator[Tensor], limit: Tensor) -> float:
    return float(torch.stack([(k - limit).norm() / limit.norm() for k in kernels]).mean())


def convergence(seeds: int = 12) -> dict[str, Any]:
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


def sketch_limit(seeds: int = 12) -> dict[str, Any]:
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
            row[f"error_{n}"] = distance(iter(found), limit)
            row[f"trace_{n}"] = float(torch.stack(found).mean(0).trace() / limit.trace())
        rows.append(row)
    return {"rows": rows, "seeds": seeds}


BENCHMARKS: dict[str, Callable[[], dict[str, Any]]] = {
    "tangent-convergence": convergence,
    "tangent-sketch": sketch_limit,
}
