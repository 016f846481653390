"""Does the predicted effect of shrinking a layer tell the loss that it really costs?

One layer at a time becomes smaller, nothing is refitted. "predicted" is what the plan adds up,
"scaled" the same after `Survey.measured`, on calibration data; what it really costs is measured on
other data.
MiniLM needs what `minilm.py` needs.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

import bozzetto as bz
from bozzetto.batches import call
from bozzetto.compress import survey
from bozzetto.menu import Candidate, Menu
from bozzetto.plan import Plan
from cifar import batches, images
from cifar_resnet import case as resnet_case
from minilm import case as minilm_case
from minilm import held_out
from pretrained import Case

FRACTIONS = (0.5, 0.25, 0.1)  # of a layer's values
Losses = Callable[[nn.Module], dict[str, float]]


def single(made: Menu, fraction: float) -> Iterator[Candidate]:
    """For every layer the best candidate of at most this fraction of its values."""
    for path in dict.fromkeys(c.site for c in made.candidates):
        own = [c for c in made.candidates if c.site == path]
        dense = next(c for c in own if c.choice is None)
        fit = [c for c in own if c.price["params"] <= fraction * dense.price["params"]]
        if fit:
            yield min(fit, key=lambda c: c.impact)


def agreement(case: Case, losses: Losses, fractions: Sequence[float]) -> dict[str, Any]:
    """Predicted and measured, layer by layer, and Spearman's correlation with its interval."""
    torch.set_num_threads(int(os.environ.get("THREADS", "2")))
    surveyed = survey(case.model, case.calibration, layers=case.layers)
    scaled = scales(surveyed.menu, surveyed.measured(2).menu)
    base, rows = losses(case.model), []
    for fraction in fractions:
        for found in single(surveyed.menu, fraction):
            assert found.choice is not None
            small = bz.rebuild(case.model, Plan({found.site: found.choice}, {}), surveyed.stats)
            measured = {name: value - base[name] for name, value in losses(small).items()}
            told = {"predicted": found.impact, "scaled": found.impact * scaled[found.site]}
            rows.append({"layer": found.site, "fraction": fraction} | told | measured)
    return {"rows": rows, "points": len(rows)} | correlations(rows, list(base))


def scales(before: Menu, after: Menu) -> dict[str, float]:
    """By what the measured effects multiplied each layer's impacts."""
    pairs = zip(before.candidates, after.candidates, strict=True)
    return {c.site: d.impact / c.impact for c, d in pairs if c.impact > 0}


def correlations(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Of both predictions with each measure."""
    points = {key: np.array([row[key] for row in rows]) for key in ("predicted", "scaled", *names)}
    return {
        place: {name: correlation(points[key], points[name]) for name in names}
        for place, key in (("spearman", "predicted"), ("spearman_scaled", "scaled"))
    }


def correlation(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Spearman's, with the middle 95 % of 2,000 bootstrap draws."""
    rng, draws = np.random.default_rng(0), []
    for _ in range(2000):
        chosen = rng.integers(0, len(a), len(a))
        draws.append(cast(Any, spearmanr(a[chosen], b[chosen])).statistic)
    low, high = np.quantile(draws, (0.025, 0.975))
    return {"value": float(cast(Any, spearmanr(a, b)).statistic), "low": low, "high": high}


@torch.no_grad()
def _outputs(model: nn.Module, data: Sequence[Any]) -> Tensor:
    return torch.cat([call(model, batch) for batch in data])


def resnet20() -> dict[str, Any]:
    """1,024 test images: cross entropy of the labels, divergence from the target's answers."""
    case, (x, y) = resnet_case(20), images("test")
    data, labels = batches(x[:1024], y[:1024], 256), y[:1024]
    target = _outputs(case.model, data).log_softmax(1)

    def losses(model: nn.Module) -> dict[str, float]:
        found = _outputs(model, data).log_softmax(1)
        return {
            "cross entropy": float(F.nll_loss(found, labels)),
            "divergence": float(F.kl_div(found, target, log_target=True, reduction="batchmean")),
        }

    return agreement(case, losses, FRACTIONS)


def minilm() -> dict[str, Any]:
    """128 sentences of the test split: squared distance of the embeddings from the target's.

    The layers of three of the six blocks, statistics from 256 sentences.
    """
    case = minilm_case()
    blocks = [f"*encoder.layer.{i}.*" for i in (0, 2, 5)]
    case = replace(case, calibration=case.calibration[::4], layers=blocks)
    data = held_out(128)
    target = _outputs(case.model, data)

    def losses(model: nn.Module) -> dict[str, float]:
        change = (_outputs(model, data) - target).square().sum(1).mean()
        return {"squared_distance": float(change)}

    return agreement(case, losses, FRACTIONS[:2])


BENCHMARKS: dict[str, Callable[[], dict[str, Any]]] = {
    "sensitivity-resnet20": resnet20,
    "sensitivity-minilm": minilm,
}
