"""`rebuild`: the small network that a plan describes."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import nn

from bozzetto.expand import expand
from bozzetto.linalg import seeded
from bozzetto.methods import Objective, make_method
from bozzetto.ops import Lookup
from bozzetto.plan import Choice, Plan
from bozzetto.prices import count_params
from bozzetto.sites import Site, find_sites, lookup_twin, replace_module_
from bozzetto.stats import Stats

__all__ = ["rebuild"]


def rebuild(model: nn.Module, made: Plan, stats: Mapping[str, Stats] | None = None) -> nn.Module:
    """The small network that a plan describes.

    Args:
        model: the target; not changed.
        made: a plan for it.
        stats: with them, layers are fitted to the target's; without, weights are fresh.

    Raises:
        ValueError: if the plan is for another model, or stats lack one of its layers.
    """
    with torch.inference_mode(False):  # of which nothing that is made could be trained
        small = expand(model, list(made.choices))
        sites, _ = find_sites(small)
        for path, choice in made.choices.items():
            if path not in sites:
                raise ValueError(f"the plan is for another model: it has no layer {path!r}")
            _check_size(path, choice, sites[path])
            known = None if stats is None else _known(stats, path)
            small = _rebuild_site_(small, sites[path], choice, known)
    if made.small and count_params(small) != made.small.get("params"):
        raise ValueError(
            f"the plan is for another model: it makes {made.small.get('params')} values, this one "
            f"{count_params(small)}"
        )
    return small


def _known(stats: Mapping[str, Stats], path: str) -> Stats:
    try:
        return stats[path]
    except KeyError:
        raise ValueError(
            f"stats of every layer that the plan changes are needed; {path!r} has none"
        ) from None


def _check_size(path: str, choice: Choice, site: Site) -> None:
    """Refuse what is no smaller form of a layer before memory is taken for it."""
    m = site.map
    method = make_method(choice.method, choice.options)
    if (values := method.values(m, choice.size)) >= m.weight.numel():
        raise ValueError(
            f"the plan is for another model: {choice.method!r} of size {choice.size} has {values} "
            f"values, not fewer than the {m.weight.numel()} of {path!r}"
        )


def _rebuild_site_(model: nn.Module, site: Site, choice: Choice, stats: Stats | None) -> nn.Module:
    """Put the chosen layer at every path of a site."""
    method, old = make_method(choice.method, choice.options), model.get_submodule(site.path)
    with seeded(choice.seed, site.map.weight.device):
        layer = method.build(site.map, choice.size, choice.seed)
    if stats is not None:
        method.fit_(layer, Objective(site.map, stats))
    layer.requires_grad_(site.map.weight.requires_grad).train(old.training)
    if site.map.bias is not None and (bias := method.bias(layer)) is not None:
        bias.requires_grad_(site.map.bias.requires_grad)
    for path in (site.path, *site.aliases):
        model = replace_module_(model, path, layer)
    for path, other in site.transposed:
        twin = lookup_twin(layer, cast(Lookup, other.op).padding_idx)
        model = replace_module_(model, path, twin.train(old.training))
    return model
