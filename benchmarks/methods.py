"""Methods against each other at equal bytes: error layer by layer, then accuracy of the whole.

The error of a method at a share of the bytes is what its best form within that share of every layer
leaves of the objective, relative to dropping the layer; over the layers the root of the mean. For
MiniLM see `minilm` on how to install the weights.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import bozzetto as bz
from bozzetto.compress import Survey
from bozzetto.linalg import random_signs
from bozzetto.maps import LinearMap
from bozzetto.menu import menu
from bozzetto.methods import AUTO, AUTO_BYTES, LowRank, Objective, make_method
from bozzetto.methods.method import Form
from bozzetto.moments import Full, damped
from bozzetto.prices import count_bytes, count_params
from bozzetto.sites import find_sites
from cifar import batches, images, resnet

CALIBRATION = 1024  # training images, no labels
SHARES = (0.5, 0.25, 0.125, 0.0625)
METHODS = ("lowrank", "tucker", "signs", "hybrid")
TEST_IMAGES = 2000

Row = dict[str, Any]
Sizes = tuple[float, int, int]  # relative error, bytes, values


def _priced(m: LinearMap, form: Form, whole: float) -> Sizes:
    """A form of a layer, built on the meta device."""
    with torch.device("meta"):
        bias = None if m.bias is None else m.bias.to("meta")
        layer = form.method.build(replace(m, weight=m.weight.to("meta"), bias=bias), form.size, 0)
    return form.error / whole, count_bytes(layer), count_params(layer)


def layer_errors(objectives: Mapping[str, Objective]) -> list[Row]:
    """A row a method and share of the bytes; a layer that no form makes so small is left out."""
    rows = []
    dense = {p: (o.map.weight.numel(), 4 * o.map.weight.numel()) for p, o in objectives.items()}
    for name in METHODS:
        forms: dict[str, list[Sizes]] = {}
        for path, o in objectives.items():
            found = make_method(name).forms(o)
            forms[path] = [_priced(o.map, form, o.energy) for form in found]
        for share in SHARES:
            best = {
                path: min((f for f in found if f[1] <= share * dense[path][1]), default=None)
                for path, found in forms.items()
            }
            kept = {path: form for path, form in best.items() if form is not None}
            if kept:
                rows.append(_row(name, share, kept, dense))
    return rows


def _row(
    name: str, share: float, kept: Mapping[str, Sizes], dense: Mapping[str, tuple[int, int]]
) -> Row:
    values = sum(dense[path][0] for path in kept)
    return {
        "method": name,
        "bytes at most": share,
        "error": round((sum(form[0] for form in kept.values()) / len(kept)) ** 0.5, 4),
        "bytes": round(sum(form[1] for form in kept.values()) / (4 * values), 4),
        "values": round(sum(form[2] for form in kept.values()) / values, 4),
        "layers": len(kept),
    }


def _resnet20(seed: int) -> tuple[nn.Module, list[Tensor], dict[str, bz.Stats]]:
    torch.set_num_threads(int(os.environ.get("THREADS", "2")))
    model, (x, _) = resnet(20), images("train")
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:CALIBRATION]
    calibration = list(x[chosen].split(128))
    return model, calibration, bz.collect(model, calibration)


def resnet20(seed: int = 0) -> Row:
    """All convolutions but the first."""
    model, _, stats = _resnet20(seed)
    sites, _ = find_sites(model)
    layers = {path: site for path, site in sites.items() if path.startswith("layer")}
    rows = layer_errors({path: Objective(site.map, stats[path]) for path, site in layers.items()})
    return {"rows": rows, "calibration": CALIBRATION, "seed": seed}


def resnet20_accuracy(seed: int = 0) -> Row:
    """The network at equal shares of values and of bytes, without tuning."""
    model, calibration, stats = _resnet20(seed)
    x, y = images("test")
    rows = []
    for names in (AUTO, AUTO_BYTES):
        made = menu(model, stats, methods=names, batch=calibration[0])
        for share in SHARES[:3]:
            small, plan = Survey(model, calibration, stats, made).compress(
                bz.Budget(params=share, bytes=share)
            )
            kept = {r: round(plan.kept(r), 4) for r in ("params", "bytes", "flops")}
            right = accuracy(small, x[:TEST_IMAGES], y[:TEST_IMAGES])
            rows.append({"methods": list(names), "keep": share, "accuracy": right} | kept)
            print(rows[-1], flush=True)
    return {"rows": rows, "test_images": TEST_IMAGES, "calibration": CALIBRATION, "seed": seed}


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of right answers."""
    right = sum(int((model(a).argmax(1) == b).sum()) for a, b in batches(x, y, 500))
    return right / len(y)


def minilm() -> Row:
    """The linear layers of the first and the last block."""
    from minilm import SENTENCES, case

    torch.set_num_threads(int(os.environ.get("THREADS", "2")))
    network = case()
    stats = bz.collect(network.model, list(network.calibration)[::4])
    sites, _ = find_sites(network.model)
    layers = {p: s for p, s in sites.items() if "layer.0." in p or "layer.5." in p}
    rows = layer_errors({path: Objective(site.map, stats[path]) for path, site in layers.items()})
    return {"rows": rows, "layers": list(layers), "calibration": SENTENCES // 4, "seed": 0}


def _folded(o: Objective, keep: float, outliers: float, scaled: bool) -> float:
    """Error of a core behind a fold of the inputs that knows them, least squares in C.

    A column's importance is its share of the output's energy. The most important ones, `outliers`
    of the rows, have a row of their own; the rest are dealt to the others in turn, with random
    signs and, if `scaled`, times their importance.
    """
    metric, w = o.input_metric, o.w[0]
    assert isinstance(metric, Full)
    c, n = metric.c[0], w.shape[1]
    k = int(keep * n)
    importance = (c.diagonal() * w.square().sum(0)).sqrt()
    order = importance.argsort(descending=True)
    alone = int(outliers * k)
    rows = torch.cat([torch.arange(alone), alone + torch.arange(n - alone) % (k - alone)])
    u = torch.zeros(k, n, dtype=torch.float64)
    signs = random_signs(0, n).double()
    u[rows, order] = signs * (importance[order] if scaled else 1.0)
    core = torch.linalg.solve(damped(u @ c @ u.T, 1e-9), u @ c @ w.T).T  # (m, k)
    return o.error((w - core @ u).unsqueeze(0))


def folds() -> Row:
    """Folds that know the inputs, random ones and low rank, at the same values; MiniLM's layers."""
    from minilm import case

    torch.set_num_threads(int(os.environ.get("THREADS", "2")))
    network = case()
    stats = bz.collect(network.model, list(network.calibration)[::4])
    sites, _ = find_sites(network.model)
    objectives = {
        path: Objective(site.map, stats[path])
        for path, site in sites.items()
        if "layer.0." in path or "layer.5." in path
    }
    ways: dict[str, Callable[[Objective, float], float]] = {
        "random": lambda o, keep: _folded(o, keep, 0.0, False),
        "scaled": lambda o, keep: _folded(o, keep, 0.0, True),
        "scaled, outliers alone": lambda o, keep: _folded(o, keep, 0.5, True),
        "lowrank": lambda o, keep: LowRank().errors(o, [LowRank().most(o.map, keep)])[0],
    }
    rows = []
    for name, error in ways.items():
        for keep in SHARES[:3]:
            found = [error(o, keep) / o.energy for o in objectives.values()]
            root = (sum(found) / len(found)) ** 0.5
            rows.append({"way": name, "values at most": keep, "error": round(root, 4)})
    return {"rows": rows, "layers": list(objectives), "seed": 0}


BENCHMARKS: dict[str, Callable[[], Row]] = {
    "methods-resnet20": resnet20,
    "methods-resnet20-accuracy": resnet20_accuracy,
    "methods-minilm": minilm,
    "methods-folds": folds,
}
