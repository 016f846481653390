"""Choice and Plan: which layer becomes what, found as an exact knapsack."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Self

import numpy as np
from torch import nn

from bozzetto.budget import Budget
from bozzetto.expand import expand
from bozzetto.knapsack import Unreachable, knapsack, least
from bozzetto.linalg import derive_seed
from bozzetto.methods import AUTO, Method, Objective, make_method
from bozzetto.prices import Price, count_params, price_model, price_site
from bozzetto.sites import Site, find_sites, users
from bozzetto.stats import Stats

FORMAT = 1


@dataclass(frozen=True)
class Choice:
    """What one layer becomes.

    Attributes:
        method: a name in `METHODS`.
        size: rank or sketch size.
        seed: of random sketches and fresh weights.
        options: of the method.
        params: trained values of the layer after the choice.
        flops: its floating-point operations on the first calibration batch, where there was one.
        error: predicted relative error of the layer's output, weighed like the fit; None without
            calibration.
    """

    method: str
    size: int
    seed: int
    params: int
    flops: int | None = None
    error: float | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The shape of the small network, as data.

    Attributes:
        choices: {path: Choice} of the layers that change; paths are those of the expanded model.
        dense: {path: reason} of the layers with weights that stay.
        tied: {path: path of the layer whose weight it shares}.
        target: the target network's {"params": …, "flops": …}; flops only with calibration.
        small: the same of the network that the plan makes.
        seed: from which the layers' seeds derive.
    """

    choices: dict[str, Choice]
    dense: dict[str, str]
    tied: dict[str, str] = field(default_factory=dict)
    target: dict[str, int] = field(default_factory=dict)
    small: dict[str, int] = field(default_factory=dict)
    seed: int = 0

    def kept(self, resource: str = "params") -> float:
        """Fraction of the target that is kept."""
        return self.small[resource] / self.target[resource]

    def rows(self) -> list[dict[str, object]]:
        """One row a layer."""
        rows: list[dict[str, object]] = [
            {"layer": path, **asdict(choice)} for path, choice in self.choices.items()
        ]
        for row in rows:
            row["options"] = json.dumps(row["options"]) if row["options"] else ""
        return rows + [
            {"layer": path, "method": "dense", "reason": reason}
            for path, reason in self.dense.items()
        ]

    def figure(self, ax: Any) -> None:
        """Values kept, a bar a layer."""
        names = list(self.choices)
        ax.barh(range(len(names)), [c.params for c in self.choices.values()])
        ax.set_yticks(range(len(names)), names)
        ax.invert_yaxis()
        ax.set_xlabel("trained values")

    def to_json(self) -> str:
        """The plan as text that a person can read and edit."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read and check a plan.

        Raises:
            ValueError: for anything that is not a plan of this format, naming what is wrong.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"a plan is JSON; got {error}") from error
        return _plan(cls, data)


def _plan(cls: Any, data: Any) -> Any:
    """A plan from parsed JSON, every field checked."""
    expected = {"format", "choices", "dense", "tied", "target", "small", "seed"}
    if not isinstance(data, dict) or set(data) != expected:
        got = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"a plan has the fields {sorted(expected)}; got {got}")
    if data.pop("format") != FORMAT:
        raise ValueError(f"this version reads plans of format {FORMAT}")
    _check(data["seed"], int, "seed")
    for name in ("dense", "tied"):
        _check_mapping(data[name], str, name)
    for name in ("target", "small"):
        _check_mapping(data[name], int, name)
    _check_mapping(data["choices"], dict, "choices")
    choices = {path: _choice(path, value) for path, value in data["choices"].items()}
    return cls(**(data | {"choices": choices}))


def _choice(path: str, data: dict[str, Any]) -> Choice:
    kinds: dict[str, tuple[type, ...]] = {
        "method": (str,), "size": (int,), "seed": (int,), "params": (int,),
        "flops": (int, type(None)), "error": (float, int, type(None)), "options": (dict,),
    }  # fmt: skip
    if set(data) != set(kinds):
        raise ValueError(f"a choice has the fields {sorted(kinds)}; {path!r} has {sorted(data)}")
    for name, kind in kinds.items():
        _check(data[name], kind, f"{path}.{name}")
    if data["size"] < 1:
        raise ValueError(f"a size is at least 1; {path!r} has {data['size']}")
    make_method(data["method"], data["options"])
    return Choice(**data)


def _check(value: Any, kind: type | tuple[type, ...], name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ValueError(f"plan field {name!r} needs {kind}; got {value!r}")


def _check_mapping(value: Any, kind: type, name: str) -> None:
    _check(value, dict, name)
    for key, item in value.items():
        _check(item, kind, f"{name}.{key}")


@dataclass(frozen=True)
class Candidate:
    """One way to write one layer: its price and its predicted effect on the loss."""

    site: str
    choice: Choice | None  # None: left dense
    price: Price
    impact: float


def plan(
    model: nn.Module,
    stats: Mapping[str, Stats],
    budget: Budget,
    *,
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]] | str = "auto",
    layers: Sequence[str] | str = "*",
    batch: Any = None,
    seed: int = 0,
) -> Plan:
    """The plan of least predicted loss within the budget.

    Args:
        model: the target; not changed.
        stats: from `collect`.
        budget: fractions of the target that may be kept.
        methods: "auto", names, or {name: options}.
        layers: patterns (as of file names) of the paths that may change; the rest stays dense.
        batch: one batch, on which multiply-adds of the whole network are counted; without it only
            those of the linear maps count.
        seed: of random sketches.

    Raises:
        ValueError: for a model without layers to compress, a pattern that fits no layer, or an
            unknown method.
        Unreachable: for a budget that no plan meets, saying the smallest reachable.
    """
    expanded = expand(model)
    sites, dense = find_sites(expanded)
    tried, asked = _methods(methods), _asked(layers, sites)
    candidates: list[Candidate] = []
    for path, site in sites.items():
        if path not in asked:
            dense[path] = "not among the layers asked for"
            continue
        found = _candidates(site, stats, tried, seed)
        if isinstance(found, str):
            dense[path] = found
        else:
            candidates += found
    if not candidates:
        raise ValueError(f"nothing to compress: needed a layer with a smaller form; got {dense}")
    return _assemble(expanded, sites, dense, candidates, budget, batch, seed)


def _methods(names: Any) -> list[tuple[str, dict[str, Any], Method]]:
    if names == "auto":
        names = AUTO
    elif isinstance(names, str):
        names = [names]
    items = names.items() if isinstance(names, Mapping) else [(name, {}) for name in names]
    return [(name, dict(options), make_method(name, dict(options))) for name, options in items]


def _asked(patterns: Sequence[str] | str, paths: Collection[str]) -> set[str]:
    """The paths that fit a pattern."""
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        fit = {path for path in paths if fnmatchcase(path, pattern)}
        if paths and not fit:
            raise ValueError(f"layers need to fit one of {sorted(paths)}; {pattern!r} fits none")
        found |= fit
    return found


def _candidates(
    site: Site,
    stats: Mapping[str, Stats],
    methods: Sequence[tuple[str, dict[str, Any], Method]],
    seed: int,
) -> list[Candidate] | str:
    """Everything that a site can become, or the reason why it stays as it is."""
    known = stats.get(site.path)
    if known is None:
        return "no calibration batch reached it"
    objective = Objective(site.map, known)
    if objective.energy <= 0:
        return "its output is zero on all calibration data"
    found = [Candidate(site.path, None, price_site(site, stats), 0.0)]
    for name, options, method in methods:
        sizes = method.sizes(site.map)
        for size, error in zip(sizes, method.errors(objective, sizes), strict=True):
            price = price_site(site, stats, lambda m, k=size, by=method: by.build(m, k, 0))
            relative = (max(error, 0.0) / objective.energy) ** 0.5
            choice = Choice(name, size, derive_seed(seed, site.path), *price, relative, options)
            found.append(Candidate(site.path, choice, price, error * known.positions))
    return found if len(found) > 1 else "it is too small to have a smaller form"


def _assemble(
    expanded: nn.Module,
    sites: Mapping[str, Site],
    dense: dict[str, str],
    candidates: Sequence[Candidate],
    budget: Budget,
    batch: Any,
    seed: int,
) -> Plan:
    """Solve the knapsack and write the plan down."""
    whole = [c.price for c in candidates if c.choice is None]
    layers = Price(sum(p.params for p in whole), sum(p.flops for p in whole))
    total = Price(count_params(expanded), layers.flops)
    if batch is not None:
        total = price_model(expanded, batch)
    target, rest = total._asdict(), Price(total.params - layers.params, total.flops - layers.flops)
    names = {path: i for i, path in enumerate(dict.fromkeys(c.site for c in candidates))}
    groups = [names[c.site] for c in candidates]
    costs = {r: np.array([getattr(c.price, r) for c in candidates], float) for r in target}
    limits = {r: int(keep * target[r]) - getattr(rest, r) for r, keep in budget.bounds().items()}
    for r, limit in limits.items():
        lowest = least(groups, costs[r])
        if lowest > limit:
            reach = (lowest + getattr(rest, r)) / target[r]
            raise Unreachable(
                f"no plan keeps {budget.bounds()[r]} of the {r}: the smallest reachable is "
                f"{reach:.4f}; left dense: {dense or 'nothing'}"
            )
    loss = np.array([c.impact for c in candidates])
    chosen = [candidates[i] for i in knapsack(groups, costs, loss, limits)]
    small = {r: getattr(rest, r) + sum(getattr(c.price, r) for c in chosen) for r in target}
    for c in chosen:
        if c.choice is None:
            dense[c.site] = "dense is the best use of the budget"
    choices = {c.site: c.choice for c in chosen if c.choice is not None}
    tied = {other: s.path for s in sites.values() for other in users(s) if s.path in choices}
    return Plan(choices, dense, tied, target, small, seed)
