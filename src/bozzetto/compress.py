"""The main job: `compress` a trained model, `sketch` one to train, `rebuild` a plan's network."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

from torch import nn

from bozzetto.budget import Budget
from bozzetto.expand import expand
from bozzetto.knapsack import Unreachable
from bozzetto.linalg import derive_seed, seeded
from bozzetto.methods import Method, Objective, make_method
from bozzetto.ops import Lookup
from bozzetto.plan import Choice, Plan, plan
from bozzetto.prices import count_params
from bozzetto.refit import refit_
from bozzetto.sites import Site, find_sites, lookup_twin, replace_module_, users
from bozzetto.stats import Loss, Stats, collect


def compress(
    model: nn.Module,
    keep: float | Budget,
    calibration: Iterable[Any],
    *,
    methods: Any = "auto",
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
    made = plan(model, stats, budget, methods=methods, batch=batches[0], seed=seed)
    small = rebuild(model, made, stats)
    return refit_(small, model, made, stats, batches), made


def sketch(
    model: nn.Module, keep: float | Budget, *, family: str = "fold", seed: int = 0
) -> tuple[nn.Module, Plan]:
    """The network of sketched layers to train from scratch at a fraction of the size, and its plan.

    Every layer keeps the same fraction of its values, the largest with which the whole meets the
    budget. The model gives the architecture only; its weights are not used.

    Raises:
        ValueError: for a keep outside (0, 1], a bound on anything but params, or a model without
            layers to sketch.
        Unreachable: for a budget below what the smallest sketches need.
    """
    budget = Budget.of(keep)
    if budget.params is None or budget.flops is not None:
        raise ValueError(f"sketch bounds params; got {budget}")
    made = _uniform_plan(model, budget.params, {"family": family}, seed)
    return rebuild(model, made), made


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


def _uniform_plan(model: nn.Module, keep: float, options: dict[str, Any], seed: int) -> Plan:
    """Every layer at the largest common fraction of its values that meets the budget."""
    small, method = expand(model), make_method("sketched", options)
    sites, dense = find_sites(small)
    usable = {path: site for path, site in sites.items() if method.most(site.map) > 0}
    dense |= dict.fromkeys(sites.keys() - usable.keys(), "it is too small to have a smaller form")
    if not usable:
        raise ValueError(f"nothing to sketch: needed a layer with a smaller form; got {dense}")
    total = count_params(small)
    limit = int(keep * total) - (total - sum(s.map.weight.numel() for s in usable.values()))

    def sizes(fraction: float) -> dict[str, int]:
        return {p: max(1, method.most(s.map, fraction)) for p, s in usable.items()}

    def values(found: Mapping[str, int]) -> int:
        return sum(method.values(usable[p].map, k) for p, k in found.items())

    if values(sizes(0.0)) > limit:
        least = (keep * total - limit + values(sizes(0.0))) / total
        raise Unreachable(f"no sketch keeps {keep} of the params: the smallest is {least:.4f}")
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if values(sizes(middle)) <= limit else (low, middle)
    found = sizes(1.0) if values(sizes(1.0)) <= limit else sizes(low)
    choices = {p: _fresh_choice(usable[p], k, method, options, seed) for p, k in found.items()}
    tied = {other: p for p in choices for other in users(usable[p])}
    kept = int(keep * total) - limit + values(found)
    return Plan(choices, dense, tied, {"params": total}, {"params": kept}, seed)


def _fresh_choice(
    site: Site, size: int, method: Method, options: dict[str, Any], seed: int
) -> Choice:
    bias = 0 if site.map.bias is None else site.map.bias.numel()
    params = method.values(site.map, size) + bias
    return Choice("sketched", size, derive_seed(seed, site.path), params, options=options)
