"""The contestants of the study of direct training: how each is made of the dense network."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bozzetto as bz
from bozzetto.linalg import random_integers, random_signs
from bozzetto.methods import make_method
from bozzetto.plan import Choice
from bozzetto.sites import Site, find_sites, replace_module_


class Hashed(nn.Module):
    """HashedNets (Chen et al. 2015): every weight is one of few trained values, signed."""

    def __init__(self, layer: nn.Module, values: int, seed: int) -> None:
        super().__init__()
        weight, self.layer = layer.weight, layer
        std = float(weight.detach().std())
        self.values = nn.Parameter(torch.randn(values) * std)
        bucket = random_integers(seed, weight.numel(), values).view_as(weight)
        self.register_buffer("bucket", bucket, persistent=False)
        signs = random_signs(seed + 1, weight.numel()).view_as(weight).to(weight.dtype)
        self.register_buffer("signs", signs, persistent=False)
        del self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        weight = self.values[self.bucket] * self.signs
        if isinstance(self.layer, nn.Embedding):
            return F.embedding(x, weight)
        return torch.func.functional_call(self.layer, {"weight": weight}, (x,))


Build = Callable[[nn.Module, bz.Plan], nn.Module]


def core_values(choice: Choice, site: Site) -> int:
    return make_method(choice.method, choice.options).values(site.map, choice.size)


def as_method(name: str, model: nn.Module, plan: bz.Plan) -> nn.Module:
    """Every layer of the plan in another form of at most as many values; low rank where none."""
    sites, choices = find_sites(bz.expand(model))[0], {}
    for path, choice in plan.choices.items():
        site, values = sites[path].map, core_values(choice, sites[path])
        kind = name if make_method(name).most(site) else "lowrank"
        size = make_method(kind).most(site, values / site.weight.numel())
        choices[path] = replace(choice, method=kind, size=max(1, size), options={})
    return bz.rebuild(model, replace(plan, choices=choices, small={}))


def hashed(model: nn.Module, plan: bz.Plan) -> nn.Module:
    small = copy.deepcopy(model)
    for path, site in find_sites(model)[0].items():
        if path in plan.choices:
            choice = plan.choices[path]
            layer = Hashed(small.get_submodule(path), core_values(choice, site), choice.seed)
            small = replace_module_(small, path, layer)
    return small


def joint(model: nn.Module, plan: bz.Plan) -> nn.Module:
    """The paper's sketch of whole patches in every convolution of the plan."""
    small = bz.rebuild(model, plan)
    for path, choice in plan.choices.items():
        old = model.get_submodule(path)
        if isinstance(old, nn.Conv2d) and old.kernel_size != (1, 1):
            layer = bz.nn.SketchConv2d(
                old.in_channels, old.out_channels, old.kernel_size, choice.size,
                stride=old.stride, padding=old.padding, bias=old.bias is not None,
                form="joint", seed=choice.seed, **choice.options,
            )  # fmt: skip
            small = replace_module_(small, path, layer)
    return small


@dataclass(frozen=True)
class Contestant:
    """How a contestant is made of the dense network and the default sketch's plan."""

    build: Build | None = None  # None: by `sketch` with the options
    options: tuple[tuple[str, Any], ...] = ()


def sketched(**options: Any) -> Contestant:
    return Contestant(None, tuple(options.items()))


CONTESTANTS = {
    "dense": Contestant(),
    "sketch": sketched(),
    "low rank": Contestant(partial(as_method, "lowrank")),
    "narrower": Contestant(),
    "hashed": Contestant(hashed),
    "tucker": Contestant(partial(as_method, "tucker")),
    "both sides": sketched(sides="both"),
    "in": sketched(sides="in"),
    "out": sketched(sides="out"),
    "both sides, sign": sketched(sides="both", family="sign"),
    "sign": sketched(sides="in", family="sign"),
    "hadamard": sketched(sides="in", family="hadamard"),
    "count": sketched(sides="in", family="count"),
    "gauss": sketched(sides="in", family="gauss"),
    "l=2": sketched(sides="in", terms=2),
    "l=3": sketched(sides="in", terms=3),
    "both sides, l=2": sketched(sides="both", terms=2),
    "both sides, l=3": sketched(sides="both", terms=3),
    "both sides, sign, joint": Contestant(joint, (("sides", "both"), ("family", "sign"))),
}
CHIEF = tuple(CONTESTANTS)[:6]
CONVOLUTIONAL = ("tucker", "both sides, sign, joint")
