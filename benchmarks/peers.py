"""Other ways to make a trained network smaller, each at a uniform fraction of every layer's values.

Tucker needs tensorly and pruning torch-pruning: `pip install --no-deps tensorly==0.10.0
torch-pruning==1.6.1` in any folder on PYTHONPATH.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn

import bozzetto as bz
from bozzetto.batches import call
from bozzetto.linalg import derive_seed
from bozzetto.methods import LowRank, Method, Objective, Tucker, make_method
from bozzetto.nn.parts import write_weight_
from bozzetto.nn.sketched import Sketched
from bozzetto.plan import Choice, Plan
from bozzetto.prices import price_model
from bozzetto.sites import Site, find_sites

Fit = Callable[[Method, nn.Module, Site], None]
Kept = Callable[[nn.Module], float]  # a small network -> what it keeps


def compressible(model: nn.Module, layers: Sequence[str]) -> dict[str, Site]:
    """The linear maps at the paths that fit the patterns."""
    sites, _ = find_sites(model)
    return {p: s for p, s in sites.items() if any(fnmatchcase(p, name) for name in layers)}


def uniform(
    model: nn.Module, layers: Sequence[str], keep: float, method: Method, name: str, fit: Fit
) -> nn.Module:
    """Every layer at the same fraction of its values, fitted by `fit`.

    Layers with under 1 % of the values stay as they are, as one does by hand with first and last
    layers; the others make up for them.
    """
    choices: dict[str, Choice] = {}
    sites = compressible(model, layers)
    sizes = {path: site.map.weight.numel() for path, site in sites.items()}
    total = sum(sizes.values())
    large = {path: size for path, size in sizes.items() if size >= 0.01 * total}
    keep = 1 - (1 - keep) * total / sum(large.values())
    for path in large:
        site = sites[path]
        if (size := method.most(site.map, keep)) > 0:
            values = method.values(site.map, size)
            seed = derive_seed(0, path)
            choices[path] = Choice(name, size, seed, values, options=method.options())
    small = bz.rebuild(model, Plan(choices, {}))
    sites = compressible(model, layers)
    for path in choices:
        fit(method, small.get_submodule(path), sites[path])
    return small.eval()


def plain_svd(
    model: nn.Module, layers: Sequence[str], keep: float, batches: Sequence[Any]
) -> nn.Module:
    """The truncated SVD of the weights, batch norms estimated anew."""
    small = uniform(model, layers, keep, LowRank(), "lowrank", _fit_plainly)
    return estimate_batch_norms(small, batches)


def whitened_svd(
    model: nn.Module, layers: Sequence[str], keep: float, batches: Sequence[Any]
) -> nn.Module:
    """The truncated SVD in the metric of the inputs (SVD-LLM), batch norms estimated anew."""
    stats = bz.collect(model, batches)

    def fit(method: Method, layer: nn.Module, site: Site) -> None:
        own = replace(stats[site.path], mean=None, gradient=None)
        method.fit_(layer, Objective(site.map, own))

    small = uniform(model, layers, keep, LowRank(), "lowrank", fit)
    return estimate_batch_norms(small, batches)


def estimate_batch_norms(model: nn.Module, batches: Sequence[Any]) -> nn.Module:
    """Running statistics from the calibration data."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for batch in batches if norms else ():
            call(model, batch)
    return model.eval()


def weight_tucker(
    model: nn.Module, layers: Sequence[str], keep: float, batches: Sequence[Any]
) -> nn.Module:
    """Partial Tucker of the weights by tensorly (HOOI); linear layers by plain SVD."""
    import_module("tensorly").set_backend("pytorch")
    partial_tucker = import_module("tensorly.decomposition").partial_tucker

    def fit(method: Method, layer: nn.Module, site: Site) -> None:
        inner, core, outer = cast(nn.Sequential, layer)
        ranks = [cast(Tensor, core.weight).shape[0], cast(Tensor, inner.weight).shape[0]]
        (middle, (left, right)), _ = partial_tucker(
            site.map.weight.detach(), rank=ranks, modes=[0, 1]
        )
        with torch.no_grad():
            cast(Tensor, inner.weight).copy_(right.T.reshape(inner.weight.shape))
            cast(Tensor, core.weight).copy_(middle)
            cast(Tensor, outer.weight).copy_(left.reshape(outer.weight.shape))
            if site.map.bias is not None:
                cast(Tensor, outer.bias).copy_(site.map.bias)

    return estimate_batch_norms(_tucker(model, layers, keep, fit, _fit_plainly), batches)


def _tucker(
    model: nn.Module, layers: Sequence[str], keep: float, fit: Fit, fit_rest: Fit
) -> nn.Module:
    sites = compressible(model, layers)
    convolutions = [p for p, s in sites.items() if Tucker().most(s.map, keep) > 0]
    rest = [path for path in sites if path not in convolutions]
    small = uniform(model, convolutions, keep, Tucker(), "tucker", fit) if convolutions else model
    return uniform(small, rest, keep, LowRank(), "lowrank", fit_rest) if rest else small


def _fit_plainly(method: Method, layer: nn.Module, site: Site) -> None:
    method.fit_(layer, Objective(site.map))


def unbiased(
    model: nn.Module, layers: Sequence[str], keep: float, batches: Sequence[Any]
) -> nn.Module:
    """The paper's layers with scaled sign matrices, their cores filled with U W (as Panther's).

    Batch norms are estimated anew.
    """

    def fit(method: Method, layer: nn.Module, site: Site) -> None:
        w = site.map.matrix()
        for core, u, on_input in cast(Sketched, layer).bases():
            write_weight_(core, w @ u.T if on_input else u @ w)
        if site.map.bias is not None:
            cast(Tensor, method.bias(layer)).data.copy_(site.map.bias)

    small = uniform(model, layers, keep, _signs(), "sketched", fit)
    return estimate_batch_norms(small, batches)


def _signs() -> Method:
    return make_method("sketched", {"family": "sign"})


def pruned(
    model: nn.Module,
    layers: Sequence[str],
    keep: float,
    batches: Sequence[Any],
    kept: Kept | None = None,
) -> nn.Module:
    """Structural pruning by magnitude over all groups (torch-pruning), until `keep` is kept."""
    tp = import_module("torch_pruning")
    small = copy.deepcopy(model)
    example = batches[0][0] if isinstance(batches[0], tuple | list) else batches[0]
    whole = _values(small, layers)
    heads = [m for m in small.modules() if isinstance(m, nn.Linear) and m.out_features == 10]
    pruner = tp.pruner.BasePruner(
        small, example, importance=tp.importance.GroupMagnitudeImportance(), global_pruning=True,
        pruning_ratio=0.95, iterative_steps=200, ignored_layers=heads,
    )  # fmt: skip
    for _ in range(200):
        if (_values(small, layers) / whole if kept is None else kept(small)) <= keep:
            break
        pruner.step()
    return estimate_batch_norms(small, batches)


def _values(model: nn.Module, layers: Sequence[str]) -> int:
    return sum(s.map.weight.numel() for s in compressible(model, layers).values())


def by_multiply_adds(
    peer: str, model: nn.Module, layers: Sequence[str], keep: float, batches: Sequence[Any]
) -> nn.Module:
    """A peer at the fraction of values that keeps at most `keep` of the multiply-adds."""
    whole = price_model(model, batches[0]).flops

    def kept(small: nn.Module) -> float:
        return price_model(small, batches[0]).flops / whole

    if peer == "pruning":
        return pruned(model, layers, keep, batches, kept)
    low, high = 0.0, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        fits = kept(_shape(peer, model, layers, middle)) <= keep
        low, high = (middle, high) if fits else (low, middle)
    return PEERS[peer](model, layers, low, batches)


def _shape(peer: str, model: nn.Module, layers: Sequence[str], keep: float) -> nn.Module:
    """A peer's network without its weights."""

    def leave(*_: object) -> None:
        pass

    if peer == "weight Tucker":
        return _tucker(model, layers, keep, leave, leave)
    if peer == "unbiased estimate":
        return uniform(model, layers, keep, _signs(), "sketched", leave)
    return uniform(model, layers, keep, LowRank(), "lowrank", leave)


def int8(model: nn.Module, layers: Sequence[str]) -> nn.Module:
    """Weights of the layers (and of their parts) rounded to 8 bits an output channel, symmetric."""
    small = copy.deepcopy(model)
    for path, site in find_sites(small)[0].items():
        if any(fnmatchcase(path, name) or fnmatchcase(path, f"{name}.*") for name in layers):
            w = site.map.weight.detach()
            scale = w.flatten(1).abs().amax(1).clamp_min(1e-12) / 127
            scale = scale.view(-1, *[1] * (w.ndim - 1))
            with torch.no_grad():
                site.map.weight.copy_((w / scale).round() * scale)
    return small.eval()


PEERS: Mapping[str, Callable[..., nn.Module]] = {
    "plain SVD": plain_svd,
    "whitened SVD": whitened_svd,
    "weight Tucker": weight_tucker,
    "pruning": pruned,
    "unbiased estimate": unbiased,
}
__all__ = ["PEERS", "by_multiply_adds", "compressible", "int8"]
