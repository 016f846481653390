"""`sketch`: the network of sketched layers that is trained directly at a fraction of the size."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from operator import itemgetter
from typing import Any, Literal, get_args

from torch import nn

from bozzetto.budget import Budget
from bozzetto.expand import expand
from bozzetto.knapsack import Unreachable
from bozzetto.linalg import derive_seed, whole_seed
from bozzetto.maps import LinearMap
from bozzetto.menu import asked_layers
from bozzetto.methods import Blocks, Method, SketchedMethod
from bozzetto.nn.sketched import Sides
from bozzetto.plan import Choice, Plan
from bozzetto.prices import count_params, price_model
from bozzetto.rebuilding import rebuild
from bozzetto.sites import Site, find_sites, users

__all__ = ["sketch"]

Ends = Literal["auto", "dense", "sketched"]
_SIDES = ("each", "in", "out", "both")
_SMALL_END = 1 / 8  # of the budget: a layer of less stays dense where ends="auto"


def sketch(
    model: nn.Module,
    keep: float | Budget,
    *,
    sides: Sides | Literal["each"] = "each",
    family: str = "fold",
    terms: int = 1,
    ends: Ends = "auto",
    layers: Sequence[str] | str = "*",
    batch: Any = None,
    seed: int = 0,
) -> tuple[nn.Module, Plan]:
    """The network of sketched layers to train from scratch at a fraction of the size, and its plan.

    A layer becomes a sum of small trained cores between fixed random sketches. By default each core
    is sketched on both sides: l cores between two isometries (the method "blocks"), of full rank,
    with an l-th of the values and multiply-adds. With sides "in", "out" or, as the paper has it,
    "both", there is one core a side behind sketches of k rows. What the sketches cannot reach has a
    relative variance of l, or 1/k; sizes minimise the sum of these over the layers, so that
    of N values a layer keeps about c·√N, with the same c for all (one-sided: c times the root of
    the values of a row). What no sketch makes smaller stays dense. The model gives the architecture
    and the scale of the fresh weights; its weights are not used.

    Args:
        model: the architecture; not changed.
        keep: fraction of the trained values to keep, or a `Budget` of params, flops or both.
        sides: where cores are sketched: each on both sides ("each"), all on one ("in", "out"), or
            some on one and some on the other ("both").
        family: of the sketches, for all but "each", whose are folds; see `bozzetto.sketch`.
        terms: sketches a side, for all but "each".
        ends: whether the first and the last layer are sketched: "auto" leaves each of them dense
            that takes at most an eighth of the budget.
        layers: patterns (as of file names) of the paths that may change; the rest stays dense.
        batch: one batch, on which multiply-adds are counted; a bound on them needs it.
        seed: of sketches and cores.

    Raises:
        ValueError: for a keep outside (0, 1], a bound on anything but params and flops, one on
            flops without a batch, an unknown family, a family or terms for sides="each", a pattern
            that fits no layer, or a model without layers to sketch.
        Unreachable: for a budget below what the smallest sketches need.
    """
    budget, seed = Budget.of(keep), whole_seed(seed)
    if unknown := budget.bounds().keys() - {"params", "flops"}:
        raise ValueError(f"sketch bounds params and flops; got a bound on {sorted(unknown)}")
    if budget.flops is not None and batch is None:
        raise ValueError("a bound on flops is counted on a batch; got batch=None")
    for name, value, known in (("ends", ends, get_args(Ends)), ("sides", sides, _SIDES)):
        if value not in known:
            raise ValueError(f"{name} is one of {known}; got {value!r}")
    share = {"auto": _SMALL_END * min(budget.bounds().values()), "dense": 1.0, "sketched": 0.0}
    if sides == "each" and (family, terms) != ("fold", 1):
        raise ValueError(
            "sides='each' is made of folds, as many as fit; a family and terms are for sides 'in', "
            f"'out' and 'both'; got family={family!r}, terms={terms}"
        )
    method = Blocks() if sides == "each" else SketchedMethod(family, sides, terms)
    ladder = _Ladder.of(
        model, method, layers, share[ends], batch, seed, quick=budget.flops is not None
    )
    made = ladder.highest(budget)
    return rebuild(model, made), made


@dataclass(frozen=True)
class _Ladder:
    """Plans of growing size for one model: level i is i steps above the smallest sketches."""

    model: nn.Module
    sites: Mapping[str, Site]  # that can be sketched
    dense: Mapping[str, str]
    method: Blocks | SketchedMethod
    batch: Any
    seed: int
    target: dict[str, int]
    quick: bool  # whether sizes must save multiply-adds

    @classmethod
    def of(
        cls,
        model: nn.Module,
        method: Blocks | SketchedMethod,
        layers: Sequence[str] | str,
        end: float,
        batch: Any,
        seed: int,
        *,
        quick: bool,
    ) -> "_Ladder":
        """All that can be sketched; the ends only if they hold a larger share than `end`."""
        whole = expand(model)
        sites, dense = find_sites(whole)
        asked, most = asked_layers(layers, sites), end * count_params(whole)
        ends = next(iter(sites), ""), next(reversed(sites), "")
        for path, site in sites.items():
            if path not in asked:
                dense[path] = "not among the layers asked for"
            elif path in ends and site.map.weight.numel() <= most:
                dense[path] = "it is the first or the last layer"
            elif method.most(site.map) == 0:
                dense[path] = "it is too small to have a smaller form"
        usable = {path: site for path, site in sites.items() if path not in dense}
        if not usable:
            raise ValueError(f"nothing to sketch: needed a layer with a smaller form; got {dense}")
        target = {"params": count_params(whole)}
        if batch is not None:
            target = price_model(model, batch)._asdict()
        return cls(model, usable, dense, method, batch, seed, target, quick)

    @cached_property
    def sizes(self) -> dict[str, Sequence[int]]:
        """All of every layer, ascending."""
        method, maps = self.method, {path: site.map for path, site in self.sites.items()}
        if isinstance(method, Blocks):
            return {path: method.every_size(m, quick=self.quick) for path, m in maps.items()}
        return {path: range(1, method.most(m) + 1) for path, m in maps.items()}

    @cached_property
    def steps(self) -> list[str]:
        """Whose size grows next: of least values for the variance that they take away."""
        order: list[tuple[float, str]] = []
        for path, site in self.sites.items():
            m, method = site.map, self.method
            costs = [
                (method.values(m, size), _variance(method, m, size)) for size in self.sizes[path]
            ]
            costs.append((m.weight.numel(), 1.0 if isinstance(method, Blocks) else 0.0))
            order += [((b - a) / (u - v), path) for (a, u), (b, v) in pairwise(costs)]
        return [path for _, path in sorted(order, key=itemgetter(0))]

    def plan(self, level: int) -> Plan:
        """The plan at a level, not priced."""
        more = Counter(self.steps[:level])
        choices, dense = {}, dict(self.dense)
        for path, site in self.sites.items():
            if more[path] < len(self.sizes[path]):
                choices[path] = self._choice(site, self.sizes[path][more[path]])
            else:
                dense[path] = "the budget leaves it dense"
        tied = {other: path for path in choices for other in users(self.sites[path])}
        return Plan(choices, dense, tied, self.target, {}, self.seed)

    def _choice(self, site: Site, size: int) -> Choice:
        own, method = derive_seed(self.seed, site.path), self.method
        bias = 0 if site.map.bias is None else site.map.bias.numel()
        params = method.values(site.map, size) + bias
        name = "blocks" if isinstance(method, Blocks) else "sketched"
        return Choice(name, size, own, params, options=asdict(method))

    def priced(self, level: int) -> Plan:
        """The plan at a level with what its network costs."""
        made = self.plan(level)
        if self.batch is not None:
            return replace(made, small=price_model(rebuild(self.model, made), self.batch)._asdict())
        maps = {path: self.sites[path].map for path in made.choices}
        saved = sum(m.weight.numel() for m in maps.values())
        kept = sum(self.method.values(m, made.choices[p].size) for p, m in maps.items())
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


def _variance(method: Method, m: LinearMap, size: int) -> float:
    """Of what a sketch can reach, up to a factor that all layers share."""
    return m.weight.numel() / method.values(m, size) if isinstance(method, Blocks) else 1 / size
