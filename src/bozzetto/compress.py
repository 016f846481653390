"""The main job: `compress` a trained model, `rebuild` a plan's network."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from torch import nn

from bozzetto.budget import Budget
from bozzetto.expand import expand
from bozzetto.linalg import seeded
from bozzetto.methods import Objective, make_method
from bozzetto.ops import Lookup
from bozzetto.plan import Choice, Plan, plan
from bozzetto.prices import count_params
from bozzetto.refit import refit_
from bozzetto.sites import Site, find_sites, lookup_twin, replace_module_
from bozzetto.stats import Loss, Stats, collect


def compress(
    model: nn.Module,
    keep: float | Budget,
    calibration: Iterable[Any],
    *,
    methods: Any = "auto",
    layers: Sequence[str] | str = "*",
    loss: Loss | None = None,
    seed: int = 0,
) -> tuple[nn.Module, Plan]:
    """A smaller network that approximates a trained one, and the plan that made it.

    Args:
        model: the target; never changed.
        keep: fraction of the trained values to keep, or a `Budget`.
        calibration: batches (see `bozzetto.batches`), labelled or not; kept in memory while layers
            are fitted one after the other.
        methods: "auto", names of methods, or {name: options}.
        layers: patterns of the paths that may become smaller; see `plan`. Dense layers behind them
            are still fitted to the inputs that they get.
        loss: (output, target) -> scalar; see `collect`.
        seed: of random sketches.

    Raises:
        ValueError: for a keep outside (0, 1], calibration that is empty or not finite, or a model
            without layers to compress.
        Unreachable: for a budget that no plan meets.
    """
    budget = Budget.of(keep)
    batches = list(calibration)
    if not batches:
        raise ValueError("calibration needs at least one batch; got none")
    stats = collect(model, batches, loss=loss)
    made = plan(model, stats, budget, methods=methods, layers=layers, batch=batches[0], seed=seed)
    small = rebuild(model, made, stats)
    return refit_(small, model, made, stats, batches), made


def rebuild(model: nn.Module, made: Plan, stats: Mapping[str, Stats] | None = None) -> nn.Module:
    """The small network that a plan describes.

    Args:
        model: the target; not changed.
        made: a plan for it.
        stats: with them, layers are fitted to the target's; without, weights are fresh.

    Raises:
        ValueError: if the plan is for another model.
    """
    small = expand(model, list(made.choices))
    sites, _ = find_sites(small)
    for path, choice in made.choices.items():
        if path not in sites:
            raise ValueError(f"the plan is for another model: it has no layer {path!r}")
        small = _rebuild_site_(small, sites[path], choice, None if stats is None else stats[path])
    if made.small and count_params(small) != made.small["params"]:
        raise ValueError(
            f"the plan is for another model: it makes {made.small['params']} values, this one "
            f"{count_params(small)}"
        )
    return small


def _rebuild_site_(model: nn.Module, site: Site, choice: Choice, stats: Stats | None) -> nn.Module:
    """Put the chosen layer at every path of a site."""
    method, old = make_method(choice.method, choice.options), model.get_submodule(site.path)
    with seeded(choice.seed, site.map.weight.device):
        layer = method.build(site.map, choice.size, choice.seed)
    if stats is not None:
        method.fit_(layer, Objective(site.map, stats))
    layer.requires_grad_(site.map.weight.requires_grad).train(old.training)
    for path in (site.path, *site.aliases):
        model = replace_module_(model, path, layer)
    for path, other in site.transposed:
        twin = lookup_twin(layer, cast(Lookup, other.op).padding_idx)
        model = replace_module_(model, path, twin.train(old.training))
    return model
