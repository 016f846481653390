"""`sketch`: the network of sketched layers that is trained directly at a fraction of the size."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from bozzetto.budget import Budget
from bozzetto.compress import rebuild
from bozzetto.expand import expand
from bozzetto.knapsack import Unreachable
from bozzetto.linalg import derive_seed
from bozzetto.methods import Method, make_method
from bozzetto.plan import Choice, Plan
from bozzetto.prices import count_params
from bozzetto.sites import Site, find_sites, users

__all__ = ["sketch"]


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
