"""Does tangent alignment predict the accuracy after training better than cheaper scores?

    python benchmarks/run.py tangent-alignment

Random plans of three networks are fitted, scored without training, then trained. What is done is
kept in benchmarks/cache/tangent-alignment.jsonl: the run can be stopped and started again.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor, nn

import bozzetto as bz
import lines
from bozzetto.analysis.kernel import alignment
from bozzetto.batches import in_mode
from bozzetto.linalg import seeded
from bozzetto.menu import Candidate, Menu, menu
from bozzetto.plan import Plan
from bozzetto.tangent import empirical_ntk
from cifar import CACHE, SHARED, Block
from cifar import images as cifar_images

PLANS, INPUTS, DRAWS = 22, 64, 4000
KEPT = CACHE / "tangent-alignment.jsonl"
SCORES = ("alignment", "loss", "function", "predicted", "parameters", "gradient", "saliency")


@dataclass(frozen=True)
class Data:
    """Images and labels to train on and to test on."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def fashion(train: int, test: int = 2000, pool: int = 1) -> Data:
    """Fashion-MNIST, (N, 1, 28 / pool, 28 / pool)."""
    parts: list[Tensor] = []
    for split, count in (("train", train), ("test", test)):
        held = np.load(SHARED / "fashion_mnist" / f"{split}.npz")
        x = torch.from_numpy(held["x"][:count]).float()[:, None] / 255
        parts += [F.avg_pool2d((x - 0.286) / 0.353, pool), torch.from_numpy(held["y"][:count])]
    return Data(parts[0], parts[1].long(), parts[2], parts[3].long())


def cifar(train: int, test: int = 2000) -> Data:
    """CIFAR-10 at 16×16 pixels."""
    parts: list[Tensor] = []
    for split, count in (("train", train), ("test", test)):
        x, y = cifar_images(split)
        parts += [F.avg_pool2d(x[:count], 2), y[:count]]
    return Data(*parts)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


def residual() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        Block(12, 12, 1), Block(12, 24, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(24, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Study:
    """A network, its data, and how long it is trained: the target, then each small network."""

    build: Callable[[], nn.Module]
    data: Callable[[], Data]
    epochs: tuple[int, int]


STUDIES = {
    "MLP, Fashion-MNIST": Study(mlp, lambda: fashion(5000), (6, 2)),
    "CNN, Fashion-MNIST at 14×14": Study(cnn, lambda: fashion(4000, pool=2), (6, 2)),
    "residual CNN, CIFAR-10 at 16×16": Study(residual, lambda: cifar(4000), (6, 2)),
}


def trained(model: nn.Module, data: Data, epochs: int, seed: int) -> nn.Module:
    """Adam at 2e-3 on batches of 64, the rate falling to zero along a line."""
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    generator, steps = torch.Generator().manual_seed(seed), epochs * -(-len(data.x) // 64)
    falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(data.x), generator=generator).split(64):
            optimiser.zero_grad()
            F.cross_entropy(model(data.x[rows]), data.y[rows]).backward()
            optimiser.step()
            falling.step()
    return model.eval()


def accuracy(model: nn.Module, data: Data) -> float:
    with torch.no_grad():
        guess = torch.cat([model(x).argmax(1) for x in data.x_test.split(500)])
    return float((guess == data.y_test).float().mean())


def balanced_(model: nn.Module) -> nn.Module:
    """Give both factors of every low-rank component one norm; the function stays the same.

    Factors fitted in the metric of gradients differ by orders of magnitude, and one learning rate
    does not suit both.
    """
    for pair in [m for m in model.modules() if isinstance(m, nn.Sequential) and len(m) == 2]:
        a, b = pair[0].weight, pair[1].weight
        with torch.no_grad():
            scale = (b.transpose(0, 1).flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1)).sqrt()
            a.mul_(scale.view(-1, *[1] * (a.ndim - 1)))
            b.div_(scale.view(1, -1, *[1] * (b.ndim - 2)))
    return model


def random_plan(made: Menu, rng: np.random.Generator) -> tuple[Plan, float]:
    """A plan of sizes around a random fraction kept, and the loss the menu predicts of it."""
    level, chosen = 10 ** rng.uniform(-1.1, -0.2), list[Candidate]()
    for path in dict.fromkeys(c.site for c in made.candidates):
        options = [c for c in made.candidates if c.site == path]
        whole = next(c.price["params"] for c in options if c.choice is None)
        methods = sorted({c.choice.method for c in options if c.choice is not None})
        method = methods[rng.integers(len(methods))]
        wanted = whole * level * 10 ** rng.normal(0, 0.2)
        fitting = [c for c in options if c.choice is not None and c.choice.method == method]
        chosen.append(min(fitting, key=lambda c: abs(c.price["params"] - wanted)))
    choices = {c.site: c.choice for c in chosen if c.choice is not None}
    plan = Plan(choices, made.dense, {}, made.target, {}, made.seed)
    return plan, sum(c.impact for c in chosen)


def scores(
    model: nn.Module, small: nn.Module, x: Tensor, y: Tensor, kernel: Tensor, predicted: float
) -> dict[str, float]:
    """Of the fitted network before training, each larger for a better plan."""
    with in_mode(small, training=False):
        now, target = small(x), model(x).detach()
        loss = F.cross_entropy(now, y)
        wanted = [p for p in small.parameters() if p.requires_grad]
        grads = torch.autograd.grad(loss, wanted)
        found = alignment(kernel, empirical_ntk(small, x))
    return {
        "alignment": found,
        "loss": -float(loss.detach()),
        "function": -float((now - target).detach().norm() / target.norm()),
        "predicted": -predicted,
        "parameters": float(sum(p.numel() for p in wanted)),
        "gradient": -(float(sum(g.square().sum() for g in grads)) ** 0.5),
        "saliency": float(
            sum((g * p.detach()).abs().sum() for g, p in zip(grads, wanted, strict=True))
        ),
    }


def outcomes(name: str, study: Study, done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Scores and accuracy of every plan, those in `done` not made again."""
    found = [row for row in done if row["network"] == name]
    if len(found) >= PLANS:
        return found[:PLANS]
    data = study.data()
    with seeded(0, torch.device("cpu")):
        model = trained(study.build(), data, study.epochs[0], 0)
    stats = bz.collect(model, [(data.x[:512], data.y[:512])], loss=F.cross_entropy)
    made = menu(model, stats, methods=("lowrank",))
    x, y = data.x[:INPUTS], data.y[:INPUTS]
    target, kernel = accuracy(model, data), empirical_ntk(model, x)
    for i in range(len(found), PLANS):
        plan, predicted = random_plan(made, np.random.default_rng(i))
        small = balanced_(bz.rebuild(model, plan, stats)).eval()
        row = {"network": name, "target": target, "plan": i}
        row |= scores(model, small, x, y, kernel, predicted)
        row |= {"before": accuracy(small, data)}
        row |= {"accuracy": accuracy(trained(copy.deepcopy(small), data, study.epochs[1], i), data)}
        lines.add(KEPT, row)
        found.append(row)
    return found


def ranks(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Spearman of every score with the accuracy, 95 % intervals by bootstrap over plans."""
    table = np.array([[row[s] for s in (*SCORES, "accuracy")] for row in found])
    rng = np.random.default_rng(0)
    value = _with_last(table)
    draws = np.array([_with_last(_again(table, rng)) for _ in range(DRAWS)])
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    row: dict[str, Any] = {s: round(float(v), 3) for s, v in zip(SCORES, value, strict=True)}
    row["intervals"] = {
        s: [round(float(a), 3), round(float(b), 3)]
        for s, a, b in zip(SCORES, low, high, strict=True)
    }
    lead = np.quantile(draws[:, :1] - draws[:, 1:], [0.025, 0.975], axis=0).round(3).T.tolist()
    row["alignment minus"] = dict(zip(SCORES[1:], lead, strict=True))
    return row


def _with_last(table: np.ndarray) -> np.ndarray:
    """Spearman of every column with the last."""
    return np.corrcoef(rankdata(table, axis=0), rowvar=False)[:-1, -1]


def _again(table: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return table[rng.integers(len(table), size=len(table))]


def alignment_study() -> dict[str, Any]:
    """Spearman of training-free scores with the accuracy after training, over random plans."""
    done, rows = lines.read(KEPT), []
    for name, study in STUDIES.items():
        found = outcomes(name, study, done)
        after = [row["accuracy"] for row in found]
        row = {"network": name, "plans": len(found), "target": found[0]["target"]}
        row |= {"lowest": min(after), "highest": max(after)}
        rows.append(row | ranks(found))
    return {"rows": rows, "inputs": INPUTS, "draws": DRAWS}


BENCHMARKS = {"tangent-alignment": alignment_study}
