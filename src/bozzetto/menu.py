"""Menu: everything that the layers of a model can become, from which plans are chosen exactly."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from bozzetto.budget import Budget
from bozzetto.expand import expand
from bozzetto.knapsack import Unreachable, knapsack, least
from bozzetto.linalg import derive_seed, whole_seed
from bozzetto.maps import LinearMap
from bozzetto.methods import AUTO, AUTO_BYTES, Method, Objective, make_method
from bozzetto.methods.method import too_wide
from bozzetto.plan import Choice, Plan
from bozzetto.prices import (
    Price,
    count_bytes,
    count_params,
    price_model,
    price_site,
    time_models,
    time_site,
)
from bozzetto.sites import Site, find_sites, users
from bozzetto.stats import Stats

Methods = Sequence[str] | Mapping[str, Mapping[str, Any]] | str
Tried = Sequence[tuple[str, Method]]


@dataclass(frozen=True)
class Candidate:
    """One way to write one layer: its price by resource and its predicted effect on the loss."""

    site: str
    choice: Choice | None  # None: left dense
    price: dict[str, int]
    impact: float


@dataclass(frozen=True)
class Menu:
    """What every layer of a model can become; see `plan` for how it is made.

    Attributes:
        candidates: of all layers that have a smaller form.
        dense: {path: reason} of the layers that have none.
        tied: {path: path of the layer whose weight it shares}.
        target: price of the whole target, by resource.
        seed: from which the layers' seeds derive.
    """

    candidates: list[Candidate]
    dense: dict[str, str]
    tied: dict[str, str]
    target: dict[str, int]
    seed: int

    def choose(self, budget: Budget) -> Plan:
        """The plan of least predicted loss within a budget.

        Raises:
            ValueError: for a bound on what has no price here.
            Unreachable: if there is none, saying the smallest reachable.
        """
        if unknown := budget.bounds().keys() - self.target.keys():
            raise ValueError(f"prices are known of {list(self.target)}; got a bound on {unknown}")
        whole = [c.price for c in self.candidates if c.choice is None]
        rest = {r: total - sum(p[r] for p in whole) for r, total in self.target.items()}
        names = {path: i for i, path in enumerate(dict.fromkeys(c.site for c in self.candidates))}
        groups = [names[c.site] for c in self.candidates]
        costs = {r: np.array([c.price[r] for c in self.candidates], float) for r in self.target}
        limits = {r: int(keep * self.target[r]) - rest[r] for r, keep in budget.bounds().items()}
        for r, limit in limits.items():
            if (lowest := least(groups, costs[r])) > limit:
                raise Unreachable(
                    f"no plan keeps {budget.bounds()[r]} of the {r}: the smallest reachable is "
                    f"{(lowest + rest[r]) / self.target[r]:.4f}; left dense: "
                    f"{self.dense or 'nothing'}"
                )
        loss = np.array([c.impact for c in self.candidates])
        chosen = [self.candidates[i] for i in knapsack(groups, costs, loss, limits)]
        kept = {c.site: "dense is the best use of the budget" for c in chosen if c.choice is None}
        choices = {c.site: c.choice for c in chosen if c.choice is not None}
        tied = {other: path for other, path in self.tied.items() if path in choices}
        small = {r: rest[r] + sum(c.price[r] for c in chosen) for r in self.target}
        return Plan(choices, self.dense | kept, tied, self.target, small, self.seed)

    def nearest(self, path: str, share: float) -> Candidate:
        """The form of a layer whose values are nearest to that share of the dense layer's."""
        own = [c for c in self.candidates if c.site == path]
        dense = next(c.price["params"] for c in own if c.choice is None)
        forms = [c for c in own if c.choice is not None]
        return min(forms, key=lambda c: abs(c.price["params"] - share * dense))

    def scaled(self, scales: Mapping[str, float]) -> "Menu":
        """With the impact of every form of a layer times that layer's number."""
        scaled = [replace(c, impact=c.impact * scales[c.site]) for c in self.candidates]
        return replace(self, candidates=scaled)


def plan(
    model: nn.Module,
    stats: Mapping[str, Stats],
    keep: float | Budget,
    *,
    methods: Methods = "auto",
    layers: Sequence[str] | str = "*",
    batch: Any = None,
    robustness: float = 0.0,
    seed: int = 0,
) -> Plan:
    """The plan of least predicted loss within the budget.

    Args:
        model: the target; not changed.
        stats: from `collect`.
        keep: fraction of the values that may be kept, or a `Budget`.
        methods: names, {name: options}, or "auto": those that suit what the budget bounds.
        layers: patterns (as of file names) of the paths that may change; the rest stays dense.
        batch: one batch, on which multiply-adds of the whole network are counted; without it only
            those of the linear maps count.
        robustness: the chance that a layer's input fails at which errors are predicted; see
            `Stats.crashed`, with which `rebuild` then fits.
        seed: of random sketches.

    Raises:
        ValueError: for a model without layers to compress, a pattern that fits no layer, an unknown
            method, a robustness outside [0, 1), or a bound on latency without a batch.
        Unreachable: for a budget that no plan meets, saying the smallest reachable.
    """
    budget = Budget.of(keep)
    timed, methods = budget.latency is not None, methods_for(budget, methods)
    known = {path: each.crashed(robustness) for path, each in stats.items()}
    made = menu(model, known, methods=methods, layers=layers, batch=batch, timed=timed, seed=seed)
    return made.choose(budget)


def menu(
    model: nn.Module,
    stats: Mapping[str, Stats],
    *,
    methods: Methods = "auto",
    layers: Sequence[str] | str = "*",
    batch: Any = None,
    timed: bool = False,
    seed: int = 0,
) -> Menu:
    """Every candidate of every layer with its price, for any number of budgets.

    Args: as of `plan`; `timed`: measure latencies too, which takes seconds.
    """
    seed = whole_seed(seed)
    if timed and batch is None:
        raise ValueError("a bound on latency needs a batch; got none")
    expanded = expand(model, weights="shared")
    sites, dense = find_sites(expanded)
    tried, asked = _methods(methods), asked_layers(layers, sites)
    candidates: list[Candidate] = []
    times: dict[str, int] = {}
    for path, site in sites.items():
        found = _candidates(site, stats, tried, seed) if path in asked else _NOT_ASKED
        if isinstance(found, str):
            dense[path] = found
        else:
            candidates += _timed(found, site, stats, times) if timed else found
    if not candidates:
        got = dense or sorted({f"{type(m).__module__}.{type(m).__name__}" for m in model.modules()})
        raise ValueError(f"nothing to compress: needed a layer with a smaller form; got {got}")
    target = _whole(expanded, candidates, batch)
    if timed:
        target |= {"latency": time_models({"target": expanded}, batch)["target"]}
    tied = {other: site.path for site in sites.values() for other in users(site)}
    return Menu(candidates, dense, tied, target, seed)


def methods_for(budget: Budget, methods: Methods) -> Methods:
    """What "auto" means under a budget."""
    return AUTO_BYTES if methods == "auto" and budget.bytes is not None else methods


_NOT_ASKED = "not among the layers asked for"


def _methods(names: Any) -> Tried:
    if names == "auto":
        names = AUTO
    elif isinstance(names, str):
        names = [names]
    if not isinstance(names, Iterable):
        raise TypeError(f"methods are names, {{name: options}} or 'auto'; got {names!r}")
    items = names.items() if isinstance(names, Mapping) else [(name, {}) for name in names]
    return [(name, make_method(name, dict(options or {}))) for name, options in items]


def asked_layers(patterns: Sequence[str] | str, paths: Collection[str]) -> set[str]:
    """The paths that fit a pattern."""
    if not isinstance(patterns, Iterable):
        raise TypeError(f"layers are patterns of paths; got {patterns!r}")
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        fit = {path for path in paths if fnmatchcase(path, pattern)}
        if paths and not fit:
            raise ValueError(f"layers need to fit one of {sorted(paths)}; {pattern!r} fits none")
        found |= fit
    return found


def _candidates(
    site: Site, stats: Mapping[str, Stats], methods: Tried, seed: int
) -> list[Candidate] | str:
    """Everything that a site can become, or the reason why it stays as it is."""
    known = stats.get(site.path)
    if known is None:
        return "no calibration batch reached it with an input and nothing else"
    objective = Objective(site.map, known)
    if objective.energy <= 0:
        return "its weight is zero"
    found = [Candidate(site.path, None, price_site(site, stats)._asdict(), 0.0)]
    own = derive_seed(seed, site.path)
    for name, asked in methods:
        if asked.needs_moments and too_wide(site.map):
            continue
        for method, size, error in asked.forms(objective):
            price = price_site(site, stats, partial(_build, method, size))._asdict()
            relative = (max(error, 0.0) / objective.energy) ** 0.5
            choice = Choice(name, size, own, **price, error=relative, options=method.options())
            found.append(Candidate(site.path, choice, price, error * known.positions))
    found = _worth_weighing(found)
    return found if len(found) > 1 else "no method has a smaller form of it"


def _worth_weighing(found: Sequence[Candidate]) -> list[Candidate]:
    """Without those that another one beats or equals in every price and in the error; dense stays.

    Of equals the first stays.
    """
    points = np.array([(*c.price.values(), c.impact) for c in found], float)
    kept: list[int] = [0]
    for i in np.argsort(points.sum(1), kind="stable"):
        if i and not (points[kept] <= points[i]).all(1).any():
            kept.append(int(i))
    return [found[i] for i in sorted(kept)]


def _build(method: Method, size: int, m: LinearMap) -> nn.Module:
    return method.build(m, size, 0)


def _timed(
    found: Sequence[Candidate], site: Site, stats: Mapping[str, Stats], known: dict[str, int]
) -> list[Candidate]:
    """The candidates of a site with their latencies."""
    builds = [
        partial(_build, make_method(c.choice.method, c.choice.options), c.choice.size)
        if c.choice
        else LinearMap.module
        for c in found
    ]
    timed = []
    for c, latency in zip(found, time_site(site, stats, builds, known), strict=True):
        choice = c.choice and replace(c.choice, latency=latency)
        timed.append(replace(c, choice=choice, price=c.price | {"latency": latency}))
    return timed


def _whole(expanded: nn.Module, candidates: Sequence[Candidate], batch: Any) -> dict[str, int]:
    """The target's price; without a batch, of its operations only those of the candidates."""
    if batch is not None:
        return price_model(expanded, batch)._asdict()
    flops = sum(c.price["flops"] for c in candidates if c.choice is None)
    return Price(count_params(expanded), flops, count_bytes(expanded))._asdict()
