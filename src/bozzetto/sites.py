"""Where the linear maps of a model are: shared modules and tied weights found and kept together."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import singledispatch
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from bozzetto.maps import LinearMap, NotLinear, linear_map
from bozzetto.nn.blocks import BlockLinear, BlockTable, Isometry
from bozzetto.nn.parts import Down, Hashed, Sum, Up
from bozzetto.nn.signs import Signs
from bozzetto.ops import CONVS, Dense, Lookup
from bozzetto.reading import read_layers

KNOWN = (nn.Linear, nn.Embedding, *CONVS.values())


@dataclass(frozen=True)
class Site:
    """One linear map and everywhere it is used.

    Attributes:
        path: of the layer that owns the map (a dense one where there is one).
        map: of that layer.
        aliases: other paths of the very same module, or of one that applies the same map.
        transposed: {path: map} of layers that apply the transpose of the same weight (an embedding
            tied to the head).
    """

    path: str
    map: LinearMap
    aliases: tuple[str, ...] = ()
    transposed: tuple[tuple[str, LinearMap], ...] = ()


def users(site: Site) -> list[str]:
    """Paths that share the site's weight, besides its own."""
    return [*site.aliases, *(path for path, _ in site.transposed)]


def find_sites(model: nn.Module) -> tuple[dict[str, Site], dict[str, str]]:
    """All linear maps by path, and {path: reason} for modules with matrices that are none."""
    paths: dict[int, list[str]] = defaultdict(list)
    modules: dict[int, nn.Module] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths[id(module)].append(path)
        modules[id(module)] = module
    by_weight: dict[int, list[tuple[list[str], LinearMap]]] = defaultdict(list)
    reasons: dict[str, str] = {}
    read = read_layers(model)
    for key, module in modules.items():
        try:
            found = linear_map(module)
            if read.intersection(paths[key]):
                raise NotLinear("a module above it reads its weight or sizes")
            by_weight[id(module._parameters["weight"])].append((paths[key], found))
        except NotLinear as reason:
            path, own = paths[key][0], module.parameters(recurse=False)
            inside = any(path.startswith(f"{other}.") for other in reasons)
            if not inside and (isinstance(module, KNOWN) or any(p.ndim > 1 for p in own)):
                reasons[path] = str(reason)
    held = Counter(id(p) for m in modules.values() for p in m._parameters.values())
    sites: dict[str, Site] = {}
    for weight, uses in by_weight.items():
        biases = Counter(id(m.bias) for _, m in uses if m.bias is not None)
        if held[weight] != len(uses):
            reasons |= {paths[0]: "another module holds its weight too" for paths, _ in uses}
        elif any(held[bias] != count for bias, count in biases.items()):
            reasons |= {paths[0]: "another module holds its bias too" for paths, _ in uses}
        else:
            _add_site(uses, sites, reasons)
    return sites, reasons


def _add_site(
    uses: list[tuple[list[str], LinearMap]], sites: dict[str, Site], reasons: dict[str, str]
) -> None:
    """One weight: a site, or a reason for each of its users when the tie cannot be kept."""
    uses = sorted(uses, key=lambda use: not isinstance(use[1].op, Dense))
    (first, own), *others = uses
    aliases, transposed = list(first[1:]), []
    for where, other in others:
        if other.op == own.op and other.bias is own.bias:
            aliases += where
        elif isinstance(own.op, Dense) and isinstance(other.op, Lookup):
            transposed += [(path, other) for path in where]
        else:
            for path in [first[0], *(use[0][0] for use in others)]:
                reasons[path] = f"shares its weight with {first[0]!r} but not its form"
            return
    sites[first[0]] = Site(first[0], own, tuple(aliases), tuple(transposed))


class TransposedLinear(nn.Module):
    """y = Wᵀ x with the weight of another linear layer, shared."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., m) -> (..., n)."""
        return F.linear(x, self.weight.T)


class SharedSigns(nn.Module):
    """The adjoint of a pointwise layer of signs, or rows of its weight; the bits are shared."""

    def __init__(self, signs: Signs, *, lookup: bool) -> None:
        super().__init__()
        self.signs, self.lookup = signs, lookup

    def forward(self, x: Tensor) -> Tensor:
        """(..., m) -> (..., n); of indices (...) -> (..., n)."""
        weight = cast(Tensor, self.signs.layer.weight)
        return F.embedding(x, weight) if self.lookup else F.linear(x, weight.T)


@singledispatch
def lookup_twin(layer: nn.Module, padding_idx: int | None) -> nn.Module:
    """The embedding whose table is the weight of a rewritten dense layer n → m, (m, n) sharing it.

    Reverses the layer: what came last looks rows up, what came first brings them to width n.
    """
    raise NotLinear(f"{type(layer).__name__} has no transpose")


@lookup_twin.register
def _(layer: nn.Linear, padding_idx: int | None) -> nn.Module:
    rows, width = layer.weight.shape
    table = nn.Embedding(rows, width, padding_idx, device="meta")
    table.weight = layer.weight
    return table


@lookup_twin.register
def _(layer: nn.Sequential, padding_idx: int | None) -> nn.Module:
    *before, last = layer
    if isinstance(last, Up) and isinstance(last.sketch, Isometry):
        down, core = cast(Down, before[0]), cast(BlockLinear, before[1])
        table = BlockTable(last.sketch, core.weight, padding_idx)
        return nn.Sequential(table, Up(down.sketch, scale=last.scale))
    if isinstance(last, Up):  # its rows are U's: look them up in the core
        table = cast(nn.Parameter, before[0].weight)
        twin = Hashed(last.sketch, table, padding_idx, last.scale)
        twin.weight = table
        return twin
    return nn.Sequential(lookup_twin(last, padding_idx), *map(transpose, reversed(before)))


@lookup_twin.register
def _(layer: Signs, padding_idx: int | None) -> nn.Module:
    return SharedSigns(layer, lookup=True)


@lookup_twin.register
def _(layer: Sum, padding_idx: int | None) -> nn.Module:
    return Sum(*(lookup_twin(cast(nn.Module, term), padding_idx) for term in layer.terms))


@singledispatch
def transpose(layer: nn.Module) -> nn.Module:
    """The adjoint of a pointwise part, sharing its weight."""
    raise NotLinear(f"{type(layer).__name__} has no transpose")


@transpose.register
def _(layer: nn.Linear) -> nn.Module:
    return TransposedLinear(layer)


@transpose.register
def _(layer: Signs) -> nn.Module:
    return SharedSigns(layer, lookup=False)


@transpose.register
def _(layer: Down) -> nn.Module:
    return Up(layer.sketch, layer.dim, layer.groups, layer.scale)


def replace_module_(model: nn.Module, path: str, new: nn.Module) -> nn.Module:
    """Put a module at a path; returns the model (the new module itself for the root)."""
    if not path:
        return new
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent)._modules[name] = new
    return model


__all__ = ["Site", "find_sites", "lookup_twin", "replace_module_", "transpose", "users"]
