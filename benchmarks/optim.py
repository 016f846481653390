"""Do mixing wrappers train quicker? Digits, an MLP and deep residual networks, tuned rates.

Every contestant gets its own learning rate per problem and schedule: a grid of factors of 2, made
longer while its best is at an end, each rate run at full length on tuning seeds. The best is then
run on fresh seeds, the same initial weights and batches for all. Rates are chosen by epochs to the
target loss at a constant rate and by the final training loss under a cosine schedule.

    python benchmarks/optim.py optim-mlp          # row by row; every run is kept in the cache
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

import lines
from bozzetto.linalg import seeded
from bozzetto.optim import estimate_batch_norm
from digits import digits
from optim_contestants import CONTESTANTS, PROBLEMS, Problem

CACHE = Path(__file__).parent / "cache"
FIRST_TUNING_SEED = 1000
Schedule = Literal["constant", "cosine"]


@torch.no_grad()
def evaluate(model: nn.Module, optimizer: Optimizer, data: tuple[Tensor, ...]) -> dict[str, float]:
    """Training loss and test accuracy at the point the optimiser says, batch norm estimated."""
    x, y, x_test, y_test = data
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    estimate_batch_norm(model, x[:1024].split(512))
    model.eval()
    loss = fmean(
        F.cross_entropy(model(a), b).item()
        for a, b in zip(x[:1024].split(512), y[:1024].split(512), strict=True)
    )
    accuracy = (model(x_test).argmax(1) == y_test).float().mean().item()
    model.train()
    if hasattr(optimizer, "train"):
        optimizer.train()
    return {"loss": loss, "accuracy": accuracy}


def train(problem: Problem, name: str, schedule: Schedule, rate: float, seed: int) -> dict:
    """One run: training loss and test accuracy after every epoch; cut short where it diverges."""
    with seeded(seed, torch.device("cpu")):
        data, model = digits(), problem.network()
    steps = math.ceil(len(data[0]) / problem.batch)
    contestant = CONTESTANTS[name]
    optimizer = contestant.wrap(contestant.make(list(model.parameters()), rate), steps)
    if hasattr(optimizer, "train"):
        optimizer.train()
    total = steps * problem.epochs
    shape = {"constant": lambda t: 1.0, "cosine": lambda t: (1 + math.cos(math.pi * t / total)) / 2}
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, shape[schedule])
    order, spent, history = torch.Generator().manual_seed(seed), 0.0, []
    for _ in range(problem.epochs):
        began = time.perf_counter()
        for index in torch.randperm(len(data[0]), generator=order).split(problem.batch):
            optimizer.zero_grad()
            F.cross_entropy(model(data[0][index]), data[1][index]).backward()
            optimizer.step()
            decay.step()
        spent += time.perf_counter() - began
        history.append(evaluate(model, optimizer, data))
        if not history[-1]["loss"] < 1e3:
            break
    losses = [h["loss"] if math.isfinite(h["loss"]) else 1e9 for h in history]
    finished = len(history) == problem.epochs
    return {
        "losses": losses,
        "final": losses[-1] if finished else 1e9,
        "accuracy": history[-1]["accuracy"],
        "epochs_to_target": reached(losses, problem.target),
        "step_ms": 1e3 * spent / (steps * len(history)),
        "rejections": getattr(optimizer, "rejections", 0),
    }


def reached(losses: list[float], target: float) -> float | None:
    """Epochs until the loss first falls to the target, log-linear between epochs' ends."""
    for epoch, loss in enumerate(losses):
        if loss <= target:
            if epoch == 0:
                return 1.0
            before = math.log(losses[epoch - 1] / target)
            return epoch + before / (before + math.log(target / max(loss, 1e-12)))
    return None


class Runs:
    """Finished runs of one benchmark, in a file that survives being killed."""

    def __init__(self, name: str) -> None:
        self.name, self.problem = name, PROBLEMS[name]
        self.path = CACHE / f"{name}.jsonl"
        self.done: dict[str, dict] = {row["key"]: row for row in lines.read(self.path)}

    def run(self, name: str, schedule: Schedule, rate: float, seed: int) -> dict:
        setting = {k: v for k, v in asdict(self.problem).items() if k in ("batch", "epochs")}
        key = json.dumps([name, schedule, f"{rate:.6g}", seed, setting])
        if key not in self.done:
            self.done[key] = {**train(self.problem, name, schedule, rate, seed), "key": key}
            lines.add(self.path, self.done[key])
        return self.done[key]

    def tuned(self, name: str, schedule: Schedule) -> tuple[float, int]:
        """The best rate, and how many were tried."""

        def score(k: int) -> tuple[float, float]:
            rate = CONTESTANTS[name].centre * 2.0**k
            seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + self.problem.tuning)
            runs = [self.run(name, schedule, rate, seed) for seed in seeds]
            epochs = [r["epochs_to_target"] or math.inf for r in runs]
            final = fmean(math.log(r["final"]) for r in runs)
            return (fmean(epochs) if schedule == "constant" else 0.0, final)

        half = self.problem.rates // 2
        grid = {k: score(k) for k in range(-half, self.problem.rates - half)}
        while (best := min(grid, key=grid.__getitem__)) in (min(grid), max(grid)):
            if len(grid) >= self.problem.rates + 4:
                break  # still at an end: the row's "rates_tried" says so
            beyond = best - 1 if best == min(grid) else best + 1
            grid[beyond] = score(beyond)
        return CONTESTANTS[name].centre * 2.0**best, len(grid)

    def fresh(self, name: str, schedule: Schedule) -> tuple[list[dict], dict]:
        """The runs at the tuned rate, and what is to be said of the rate."""
        rate, tried = self.tuned(name, schedule)
        runs = [self.run(name, schedule, rate, seed) for seed in range(self.problem.seeds)]
        return runs, {"rate": rate, "rates_tried": tried}

    def rows(self) -> Iterator[dict]:
        for schedule in ("constant", "cosine"):
            for name in self.problem.names:
                if schedule == "cosine" and name.startswith("schedule-free"):
                    continue  # its claim is to need none: compare its constant row
                runs, rate = self.fresh(name, schedule)
                base, _ = self.fresh(CONTESTANTS[name].base, schedule)
                against = {"base": CONTESTANTS[name].base, **summary(runs, base)}
                yield {"contestant": name, "schedule": schedule, **rate, **against}


def summary(runs: list[dict], base: list[dict]) -> dict:
    """Means over seeds, and log ratios to the base's runs of the same seeds."""
    epochs = [r["epochs_to_target"] for r in runs]
    pairs = [
        math.log(r["epochs_to_target"] / b["epochs_to_target"])
        for r, b in zip(runs, base, strict=True)
        if r["epochs_to_target"] and b["epochs_to_target"]
    ]
    finals = [math.log(r["final"]) for r in runs]
    against = [f - math.log(b["final"]) for f, b in zip(finals, base, strict=True)]
    found = [e for e in epochs if e is not None]
    return {
        "seeds": len(runs),
        "reached": len(found),
        "epochs_to_target": fmean(found) if found else None,
        "epochs_spread": stdev(found) if len(found) > 1 else None,
        "epochs_ratio": math.exp(fmean(pairs)) if pairs else None,
        "epochs_log_error": stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else None,
        "final_loss": math.exp(fmean(finals)),
        "final_ratio": math.exp(fmean(against)),
        "final_log_error": stdev(against) / len(against) ** 0.5,
        "accuracy": fmean(r["accuracy"] for r in runs),
        "accuracy_spread": stdev(r["accuracy"] for r in runs),
        "step_ms": fmean(r["step_ms"] for r in runs),
        "rejections": fmean(r["rejections"] for r in runs),
    }


def table(name: str, rows: list[dict]) -> dict:
    """The result of one problem, of the rows that are done."""
    problem = PROBLEMS[name]
    skipped = sum(other.startswith("schedule-free") for other in problem.names)
    return {
        "name": name,
        "batch": problem.batch,
        "epochs": problem.epochs,
        "target_loss": problem.target,
        "tuning_seeds": problem.tuning,
        "parameters": sum(p.numel() for p in problem.network().parameters()),
        "rows_planned": 2 * len(problem.names) - skipped,
        "rows": rows,
    }


def study(name: str) -> dict:
    """All rows of one problem."""
    return table(name, list(Runs(name).rows()))


BENCHMARKS: dict[str, Callable[[], dict]] = {name: partial(study, name) for name in PROBLEMS}


def main(names: list[str]) -> None:
    """Rows of the named problems, written as they come, so that it may be stopped at any time."""
    import run as runner

    for name in names:
        rows: list[dict] = []
        for row in Runs(name).rows():
            rows.append(row)
            print(json.dumps(row), flush=True)
            head = {"command": f"python benchmarks/optim.py {name}", "machine": runner.machine()}
            runner.write(name, head | table(name, rows))


if __name__ == "__main__":
    main(sys.argv[1:])
