"""Whole networks at a quarter of the multiply-adds: time over the dense network's, end to end.

Processor time of one thread, medians of rounds in which all forms take turns.

Trained networks (ResNet-20, MiniLM) are compressed by low rank on their data; those of random
weights get the same share of every layer, which is enough to know their time.
"""

import copy
import os
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import bozzetto as bz
from architectures import NETWORKS
from bozzetto.batches import Batch, call
from bozzetto.expand import expand
from bozzetto.methods import make_method
from bozzetto.nn import for_inference
from bozzetto.plan import Choice, Plan
from bozzetto.prices import price_model
from bozzetto.sites import find_sites
from bozzetto.timing import Sample, sample_clocks, with_threads
from layers import _median
from pretrained import Cells

Row = dict[str, Any]
KEEP = 0.25
ROUNDS = 7


def uniform(model: nn.Module, name: str, options: Row, keep: float) -> nn.Module:
    """Every layer that can be, but the first, at `keep` of its values, with fresh weights."""
    method, choices = make_method(name, options), {}
    for path, site in list(find_sites(expand(model))[0].items())[1:]:
        size = method.most(site.map, keep)
        if size and method.values(site.map, size) < site.map.weight.numel():
            choices[path] = Choice(name, size, 0, 0, options=options)
    return bz.rebuild(model, Plan(choices, {})).eval()


def shrunk(model: nn.Module, x: torch.Tensor, name: str, options: Row) -> nn.Module:
    """The uniform network of at most `KEEP` of the multiply-adds; found on the meta device."""
    meta, empty = copy.deepcopy(model).to("meta"), x.to("meta")
    whole = price_model(meta, empty).flops
    low, high = 0.0, 1.0
    for _ in range(12):
        keep = (low + high) / 2
        fits = price_model(uniform(meta, name, options, keep), empty).flops <= KEEP * whole
        low, high = (keep, high) if fits else (low, keep)
    return uniform(model, name, options, low)


def _uniform(
    model: nn.Module, batches: Sequence[Any]
) -> tuple[dict[str, nn.Module], Sequence[Any]]:
    """Of random weights: low rank and input-side folds."""
    kinds: list[tuple[str, str, Row]] = [
        ("lowrank", "lowrank", {}), ("fold in", "sketched", {"sides": "in"}),
    ]  # fmt: skip
    made = {form: shrunk(model, batches[0], method, opts) for form, method, opts in kinds}
    return {"dense": model} | made, batches


def _images(name: str) -> tuple[dict[str, nn.Module], Sequence[Any]]:
    return _uniform(NETWORKS[name](), [torch.randn(b, 3, 224, 224) for b in (1, 4)])


def _crepe() -> tuple[dict[str, nn.Module], Sequence[Any]]:
    from crepe import Crepe

    return _uniform(Crepe("full").eval(), [torch.randn(b, 1024) for b in (1, 32)])


def _resnet20() -> tuple[dict[str, nn.Module], Sequence[Any]]:
    """Also at rank 1 everywhere: what no choice of ranks can be faster than."""
    from cifar import images, resnet

    model, x = resnet(20), images("train")[0][:128]
    small, _ = bz.compress(model, bz.Budget(flops=KEEP), [x], methods=("lowrank",))
    ones = {path: Choice("lowrank", 1, 0, 0) for path in find_sites(model)[0]}
    least = bz.rebuild(model, Plan(ones, {})).eval()
    return {"dense": model, "compressed": small, "rank 1": least}, [x[:1], x[:32]]


def _minilm() -> tuple[dict[str, nn.Module], Sequence[Any]]:
    from minilm import case

    network = case()
    calibration = list(network.calibration)[::4]
    small, _ = bz.compress(network.model, bz.Budget(flops=KEEP), calibration, layers=network.layers)
    one = ({name: x[:1] for name, x in calibration[-1][0].items()}, None)
    return {"dense": network.model, "compressed": small}, [one, calibration[-1]]


CASES: dict[str, Callable[[], tuple[dict[str, nn.Module], Sequence[Any]]]] = {
    "ResNet-20": _resnet20,
    "CREPE": _crepe,
    "ViT-B": lambda: _images("ViT-B"),
    "ResNet-50": lambda: _images("ResNet-50"),
    "MiniLM": _minilm,
}


def measure(models: dict[str, nn.Module], batch: Batch) -> Row:
    """Ratios to the dense network, of the networks as they are and made for inference."""
    ready = {f"{name}, for inference": for_inference(m, batch) for name, m in models.items()}
    flops = {name: price_model(model, batch).flops for name, model in models.items()}

    def run(model: nn.Module) -> None:
        with torch.no_grad():
            call(model, batch)

    models = {name: model.eval() for name, model in (models | ready).items()}
    found = sample_clocks({n: lambda m=m: run(m) for n, m in models.items()}, ROUNDS)
    return {
        "load": round(os.getloadavg()[0], 1),
        "milliseconds": round(1e3 * _median(found["dense"], "process"), 3),
        "flops_kept": {n: round(f / flops["dense"], 4) for n, f in flops.items()},
        "forms": {
            name: round(_ratio(samples, found["dense"]), 4) for name, samples in found.items()
        },
    }


def _ratio(samples: Sequence[Sample], dense: Sequence[Sample]) -> float:
    return statistics.median(a.process / b.process for a, b in zip(samples, dense, strict=True))


def run() -> Row:
    """All networks on one thread, as far as SECONDS allow."""
    store = Cells("networks")
    for name, build in CASES.items():
        keys = [{"network": name, "batch": i} for i in (0, 1)]
        missing = [k for k in keys if not any(k.items() <= row.items() for row in store.rows)]
        if not missing or store.over():
            continue
        models, batches = build()
        for key in missing:
            with with_threads(1):
                store.once(key, lambda b=batches[key["batch"]], m=models: measure(m, b))
    table: Row = {}
    for row in store.rows:
        forms = {n.replace(", ", "_").replace(" ", "_"): v for n, v in row["forms"].items()}
        table.setdefault(row["network"], {})[f"batch_{row['batch']}"] = forms
    return {"rows": store.rows, "table": table, "keep": KEEP, "load": os.getloadavg()[0]}


BENCHMARKS: dict[str, Callable[[], Row]] = {"networks": run}
