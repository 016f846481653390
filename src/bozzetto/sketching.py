"""`sketch`: the network of sketched layers that is trained directly at a fraction of the size."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from operator import itemgetter
from typing import Any, Literal, cast, get_args

from torch import nn

from bozzetto.budget import Budget
from bozzetto.compress import rebuild
from bozzetto.expand import expand
from bozzetto.knapsack import Unreachable
from bozzetto.linalg import derive_seed
from bozzetto.menu import asked_layers
from bozzetto.methods import Method, SketchedMethod
from bozzetto.nn.sketched import Sides
from bozzetto.plan import Choice, Plan
from bozzetto.prices import count_params, price_model
from bozzetto.sites import Site, find_sites, users

__all__ = ["sketch"]

Ends = Literal["auto", "dense", "sketched"]
_SIDES = ("auto", "in", "out", "both")
_SMALL_END = 1 / 8  # of the budget: a layer of less stays dense where ends="auto"


def sketch(
    model: nn.Module,
    keep: float | Budget,
    *,
    family: str = "fold",
    sides: Sides | Literal["auto"] = "auto",
    terms: int = 1,
    ends: Ends = "auto",
    layers: Sequence[str] | str = "*",
    batch: Any = None,
    seed: int = 0,
) -> tuple[nn.Module, Plan]:
    """The network of sketched layers to train from scratch at a fraction of the size, and its plan.

    At random cores the tangent kernel of a sketched layer fluctuates about the dense layer's with a
    variance of 1/(terms·k), k the rows of its sketches, whatever its widths. Rows go, one after the
    other, where they lower the sum of these variances most for the values they cost: k ends up
    as 1/√(values of a row), and a layer that k rows would not make smaller stays dense. The model
    gives the architecture and the scale of the fresh weights; its weights are not used.

    Args:
        model: the architecture; not changed.
        keep: fraction of the trained values to keep, or a `Budget` of params, flops or both.
        family: of the sketches, see `bozzetto.sketch`.
        sides: where layers are sketched: "in", "out", "both" as in the paper, or "auto": "out" for
            the first layer of the model, whose input is given and not learnt, and "in" for others.
        terms: sketches a side.
        ends: whether the first and the last layer are sketched: "auto" leaves each of them dense
            that takes at most an eighth of the budget.
        layers: patterns (as of file names) of the paths that may change; the rest stays dense.
        batch: one batch, on which multiply-adds are counted; a bound on them needs it.
        seed: of sketches and cores.

    Raises:
        ValueError: for a keep outside (0, 1], a bound on anything but params and flops, one on
            flops without a batch, an unknown family, a pattern that fits no layer, or a model
            without layers to sketch.
        Unreachable: for a budget below what the smallest sketches need.
    """
    budget = Budget.of(keep)
    if unknown := budget.bounds().keys() - {"params", "flops"}:
        raise ValueError(f"sketch bounds params and flops; got a bound on {sorted(unknown)}")
    if budget.flops is not None and batch is None:
        raise ValueError("a bound on flops is counted on a batch; got batch=None")
    for name, value, known in (("ends", ends, get_args(Ends)), ("sides", sides, _SIDES)):
        if value not in known:
            raise ValueError(f"{name} is one of {known}; got {value!r}")
    share = {"auto": _SMALL_END * min(budget.bounds().values()), "dense": 1.0, "sketched": 0.0}
    methods = partial(_methods, family, sides, terms)
    made = _Ladder.of(model, methods, layers, share[ends], batch, seed).highest(budget)
    return rebuild(model, made), made


@dataclass(frozen=True)
class _Ladder:
    """Plans of growing size for one model: level i has i rows more than one a sketch."""

    model: nn.Module
    sites: Mapping[str, Site]  # that can be sketched
    dense: Mapping[str, str]
    methods: Mapping[str, Method]
    batch: Any
    seed: int
    target: dict[str, int]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        methods_of: Callable[[Iterable[str]], dict[str, Method]],
        layers: Sequence[str] | str,
        end: float,
        batch: Any,
        seed: int,
    ) -> "_Ladder":
        """All that can be sketched; the ends only if they hold a larger share than `end`."""
        whole = expand(model)
        sites, dense = find_sites(whole)
        methods = methods_of(sites)
        asked, most = asked_layers(layers, sites), end * count_params(whole)
        ends = next(iter(sites), ""), next(reversed(sites), "")
        for path, site in sites.items():
            if path not in asked:
                dense[path] = "not among the layers asked for"
            elif path in ends and site.map.weight.numel() <= most:
                dense[path] = "it is the first or the last layer"
            elif methods[path].most(site.map) == 0:
                dense[path] = "it is too small to have a smaller form"
        usable = {path: site for path, site in sites.items() if path not in dense}
        if not usable:
            raise ValueError(f"nothing to sketch: needed a layer with a smaller form; got {dense}")
        target = {"params": count_params(whole)}
        if batch is not None:
            target = price_model(model, batch)._asdict()
        return cls(model, usable, dense, methods, batch, seed, target)

    @cached_property
    def steps(self) -> list[str]:
        """Whose sketches get the next row: 1/k - 1/(k + 1) of variance for the values of a row."""
        order: list[tuple[int, str]] = []
        for path, site in self.sites.items():
            method = self.methods[path]
            row, most = method.values(site.map, 1), method.most(site.map)
            order += [(k * (k + 1) * row, path) for k in range(1, most + 1)]
        return [path for _, path in sorted(order, key=itemgetter(0))]

    def plan(self, level: int) -> Plan:
        """The plan at a level, not priced."""
        more = Counter(self.steps[:level])
        choices, dense = {}, dict(self.dense)
        for path, site in self.sites.items():
            size = 1 + more[path]
            if size <= self.methods[path].most(site.map):
                choices[path] = self._choice(site, size)
            else:
                dense[path] = f"{size} rows would not make it smaller"
        tied = {other: path for path in choices for other in users(self.sites[path])}
        return Plan(choices, dense, tied, self.target, {}, self.seed)

    def _choice(self, site: Site, size: int) -> Choice:
        method, own = self.methods[site.path], derive_seed(self.seed, site.path)
        bias = 0 if site.map.bias is None else site.map.bias.numel()
        params = method.values(site.map, size) + bias
        return Choice("sketched", size, own, params, options=asdict(cast(Any, method)))

    def priced(self, level: int) -> Plan:
        """The plan at a level with what its network costs."""
        made = self.plan(level)
        if self.batch is not None:
            return replace(made, small=price_model(rebuild(self.model, made), self.batch)._asdict())
        maps = {path: self.sites[path].map for path in made.choices}
        saved = sum(m.weight.numel() for m in maps.values())
        kept = sum(self.methods[p].values(m, made.choices[p].size) for p, m in maps.items())
        return replace(made, small={"params": self.target["params"] - saved + kept})

    def highest(self, budget: Budget) -> Plan:
        """The plan of the highest level within a budget."""

        def broken(level: int) -> str | None:
            made = self.priced(level)
            over = (name for name, most in budget.bounds().items() if made.kept(name) > most)
            return next(over, None)

        if name := broken(0):
            raise Unreachable(
                f"no sketch keeps {budget.bounds()[name]} of the {name}: the smallest is "
                f"{self.priced(0).kept(name):.4f}"
            )
        levels = range(len(self.steps) + 1)  # at the last one all is dense
        return self.priced(bisect_left(levels, True, lo=1, key=lambda n: broken(n) is not None) - 1)


def _methods(
    family: str, sides: Sides | Literal["auto"], terms: int, paths: Iterable[str]
) -> dict[str, Method]:
    """How each layer is sketched."""
    first, rest = ("out", "in") if sides == "auto" else (sides, sides)
    return {
        path: SketchedMethod(family, rest if place else first, terms)
        for place, path in enumerate(paths)
    }
