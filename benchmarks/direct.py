"""Is a network of sketched layers, trained from scratch, as accurate as the whole one?

Every contestant has the same number of trained values, a fraction of the dense network's: `sketch`
decides what each layer gets; low rank, Tucker and hashed weights get the same for the same layers;
the narrower network meets the number as a whole, give or take a channel. All are trained alike
(AdamW, cosine, the same epochs and batches, one learning rate a network: that of a few trials with
dense and sketched networks, or of a like network; that of sketched cores and of hashed values,
which have the dense layer's tangent kernel with c times fewer values, is √c times as high). That
`sketch` sketches cores on both sides by default, how it shares the values out, and those rates were
chosen in trials on the transformer and the network in network with seed 0 and the same test data.
The scope "conv" leaves all but the
convolutions dense and keeps the fraction of theirs.

Accuracies are in per cent of the test images, or of the next characters. A row has the mean and the
standard deviation over seeds, and the mean difference to the dense network of the same seed.

    python benchmarks/direct.py 600     # all networks, most telling first, for 600 s; resumes
    python benchmarks/direct.py 600 direct-mlp direct-cnn      # these networks
    python benchmarks/run.py direct-mlp # one network to its end
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, cast

import torch
from torch import Tensor, nn

import bozzetto as bz
import lines
from bozzetto.linalg import seeded
from bozzetto.train import OPTIMIZERS
from direct_contestants import CHIEF, CONTESTANTS, CONVOLUTIONAL, Hashed
from direct_networks import PROBLEMS, Problem, Shuffled

CACHE = Path(__file__).parent / "cache" / "direct.jsonl"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Cell:
    """One training."""

    problem: str
    contestant: str
    keep: float
    scope: str
    seed: int


def initial(problem: Problem, seed: int, width: float = 1.0) -> nn.Module:
    with seeded(seed, torch.device("cpu")):
        return problem.network(width)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def narrower(problem: Problem, keep: float, seed: int) -> nn.Module:
    """The widest dense network of that share of the values, or two hundredths of it more."""
    limit = 1.02 * keep * count(problem.network(1.0))
    fit = [w / 128 for w in range(1, 129) if count(problem.network(w / 128)) <= limit]
    return initial(problem, seed, fit[-1])


def convolutions(model: nn.Module) -> list[str]:
    return [p for p, m in model.named_modules() if isinstance(m, nn.Conv2d)]


def build(cell: Cell) -> nn.Module:
    problem, contestant = PROBLEMS[cell.problem], CONTESTANTS[cell.contestant]
    model = initial(problem, cell.seed)
    if cell.contestant == "dense":
        return model
    if cell.contestant == "narrower":
        return narrower(problem, cell.keep, cell.seed)
    layers, keep = "*", cell.keep
    if cell.scope == "conv":
        layers = convolutions(model)
        own = sum(model.get_submodule(p).weight.numel() for p in layers) / count(model)
        keep = 1 - own * (1 - cell.keep)
    small, plan = bz.sketch(model, keep, layers=layers, seed=cell.seed, **dict(contestant.options))
    if contestant.build is None:
        return small
    with seeded(cell.seed, torch.device("cpu")):  # some draw their first values
        return contestant.build(model, plan)


def optimizer(model: nn.Module, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The named AdamW; hashed values are groups of their own, with their reduction."""
    own = {
        id(m.values): cast(Tensor, m.bucket).numel() / m.values.numel()
        for m in model.modules()
        if isinstance(m, Hashed)
    }
    parted = [
        group | {"params": [p], "reduction": own.get(id(p), group["reduction"])}
        for group in groups
        for p in group["params"]
    ]
    return OPTIMIZERS["adamw"](parted, 0.9, {})


def run(cell: Cell) -> dict[str, Any]:
    problem, model, began = PROBLEMS[cell.problem], build(cell), time.perf_counter()
    data = problem.data(problem.count)
    recipe = bz.Recipe(
        epochs=problem.epochs, lr=problem.rate, seed=cell.seed, optimizer=partial(optimizer, model)
    )
    try:
        history = bz.train(model, Shuffled(data, problem.batch), recipe)
    except FloatingPointError:
        return {"accuracy": 0.0, "values": count(model), "seconds": 0.0, "diverged": True}
    tests = list(zip(data.x_test.split(500), data.y_test.split(500), strict=True))
    return {
        "accuracy": 100 * bz.evaluate(model, tests),
        "loss": history.epochs[-1]["loss"],
        "values": count(model),
        "seconds": round(time.perf_counter() - began, 1),
    }


class Runs:
    """Finished cells, in a file that grows by a line a cell."""

    def __init__(self) -> None:
        self.done = {json.dumps(e["cell"]): e for e in lines.read(CACHE)}

    def get(self, cell: Cell) -> dict[str, Any] | None:
        return self.done.get(json.dumps(asdict(cell)))

    def run(self, cell: Cell) -> dict[str, Any]:
        found = self.get(cell)
        if found is None:
            found = {"cell": asdict(cell), **run(cell)}
            self.done[json.dumps(asdict(cell))] = found
            lines.add(CACHE, found)
        return found


def applies(problem: str, name: str, scope: str) -> bool:
    has_convs = bool(convolutions(PROBLEMS[problem].network(1.0)))
    if scope == "conv" or name in CONVOLUTIONAL:
        return has_convs and not (scope == "conv" and name == "narrower")
    return True


def tiers() -> list[list[tuple[str, float, str]]]:
    """(contestant, keep, scope), the most telling first; each tier is run on every problem."""
    rest = [name for name in CONTESTANTS if name not in CHIEF]
    chief = [name for name in CHIEF if name != "dense"]
    return [
        [("dense", 1.0, "all"), *((name, 0.25, "all") for name in chief)],
        [(name, 0.125, "all") for name in chief],
        [(name, 0.25, "all") for name in rest],
        [(name, 0.5, "all") for name in chief],
        [(name, 0.0625, "all") for name in chief],
        [(name, 0.25, "conv") for name in chief],
        [(name, 0.125, "all") for name in rest],
    ]


def cells(problems: Sequence[str]) -> Iterator[Cell]:
    """All, tier by tier and seed by seed, so that what is done at any time is comparable."""
    for tier, seed, problem in product(tiers(), SEEDS, problems):
        for name, keep, scope in tier:
            if applies(problem, name, scope):
                yield Cell(problem, name, keep, scope, seed)


def row(runs: Runs, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the seeds of one contestant that are done."""
    cell, scores = Cell(**found[0]["cell"]), [f["accuracy"] for f in found]
    whole = [
        runs.run(Cell(cell.problem, "dense", 1.0, "all", f["cell"]["seed"]))["accuracy"]
        for f in found
    ]
    pairs = [a - b for a, b in zip(scores, whole, strict=True)]
    return {
        "contestant": cell.contestant,
        "keep": cell.keep,
        "scope": cell.scope,
        "values": found[0]["values"],
        "seeds": len(found),
        "accuracy": round(fmean(scores), 3),
        "spread": round(stdev(scores), 3) if len(scores) > 1 else None,
        "against_dense": round(fmean(pairs), 3),
    }


def table(problem: str, runs: Runs) -> dict[str, Any]:
    """The rows of whatever is done, and how much that is."""
    every = [*cells([problem])]
    groups: dict[str, list[dict[str, Any]]] = {}
    for cell in every:
        if (found := runs.get(cell)) is not None:
            groups.setdefault(str(replace(cell, seed=0)), []).append(found)
    settings = PROBLEMS[problem]
    return {
        "cells_done": sum(map(len, groups.values())),
        "cells_planned": len(every),
        "samples": settings.count,
        "epochs": settings.epochs,
        "batch": settings.batch,
        "rate": settings.rate,
        "rows": [row(runs, found) for found in groups.values()],
    }


def study(problem: str) -> dict[str, Any]:
    runs = Runs()
    for cell in cells([problem]):
        runs.run(cell)
    return table(problem, runs)


BENCHMARKS: dict[str, Callable[[], dict[str, Any]]] = {
    name: partial(study, name) for name in PROBLEMS
}


def main(seconds: float, problems: Sequence[str]) -> int:
    """Cells of the networks for so long; 0 if all are done, else 3.

    The result of a network is written anew after every cell.
    """
    import run as runner

    runs, end = Runs(), time.perf_counter() + seconds
    for cell in cells(problems):
        if runs.get(cell) is not None:
            continue
        if time.perf_counter() > end:
            return 3
        found = runs.run(cell)
        print(*asdict(cell).values(), f"{found['accuracy']:.2f}", found["seconds"], flush=True)
        head = {"command": "python benchmarks/direct.py", "machine": runner.machine()}
        runner.write(cell.problem, head | table(cell.problem, runs))
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:] or [*PROBLEMS]))
