"""`sketch`: the network of sketched layers that is trained directly at a fraction of the size."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from bozzetto.budget import Budget
from bozzetto.compress import rebuild
from bozzetto.expand import expand
from bozzetto.knapsack import Unreachable
from bozzetto.linalg import derive_seed
from bozzetto.menu import asked_layers
from bozzetto.methods import Method, make_method
from bozzetto.nn.sketched import Sides
from bozzetto.plan import Choice, Plan
from bozzetto.prices import count_params, price_model
from bozzetto.sites import Site, find_sites, users

__all__ = ["sketch"]


def sketch(
    model: nn.Module,
    keep: float | Budget,
    *,
    family: str = "fold",
    sides: Sides = "both",
    terms: int = 1,
    layers: Sequence[str] | str = "*",
    batch: Any = None,
    seed: int = 0,
) -> tuple[nn.Module, Plan]:
    """The network of sketched layers to train from scratch at a fraction of the size, and its plan.

    All sketches get the same number of rows k, the largest with which the whole meets the budget
    (the first layers one more, where that fits). A layer of which k rows would not be smaller stays
    dense: so do narrow first and last layers. Why equal rows: at random cores, the tangent kernel
    of a sketched layer fluctuates about the dense layer's by 1/√(terms·k), whatever its width; to
    share values in proportion instead starves the narrow layers. The model gives the architecture
    only; its weights are not used.

    Args:
        model: the architecture; not changed.
        keep: fraction of the trained values to keep, or a `Budget` of params, flops or both.
        family: of the sketches, see `bozzetto.sketch`.
        sides: where layers are sketched: "both", "in" or "out".
        terms: sketches a side.
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
    options = {"family": family, "sides": sides, "terms": terms}
    made = _Ladder.of(model, options, layers, batch, seed).highest(budget)
    return rebuild(model, made), made


@dataclass(frozen=True)
class _Ladder:
    """Plans of growing size for one model: at level i, i more rows have gone round the layers."""

    model: nn.Module
    sites: Mapping[str, Site]  # that can be sketched
    dense: Mapping[str, str]
    method: Method
    options: dict[str, Any]
    batch: Any
    seed: int
    target: dict[str, int]

    @classmethod
    def of(
        cls, model: nn.Module, options: dict[str, Any], layers: Any, batch: Any, seed: int
    ) -> "_Ladder":
        whole, method = expand(model), make_method("sketched", options)
        sites, dense = find_sites(whole)
        asked = asked_layers(layers, sites)
        usable = {p: s for p, s in sites.items() if p in asked and method.most(s.map) > 0}
        for path in sites.keys() - usable.keys():
            small = "it is too small to have a smaller form"
            dense[path] = small if path in asked else "not among the layers asked for"
        if not usable:
            raise ValueError(f"nothing to sketch: needed a layer with a smaller form; got {dense}")
        target = {"params": count_params(whole)}
        if batch is not None:
            target = price_model(model, batch)._asdict()
        return cls(model, usable, dense, method, options, batch, seed, target)

    def plan(self, level: int) -> Plan:
        """The plan at a level; the price of its network is counted in `priced`."""
        rounds, more = divmod(level, len(self.sites))
        choices, dense = {}, dict(self.dense)
        for place, (path, site) in enumerate(self.sites.items()):
            size = rounds + 1 + (place < more)
            if size <= self.method.most(site.map):
                choices[path] = self._choice(site, size)
            else:
                dense[path] = f"{size} rows would not make it smaller"
        tied = {other: path for path in choices for other in users(self.sites[path])}
        return Plan(choices, dense, tied, self.target, {}, self.seed)

    def _choice(self, site: Site, size: int) -> Choice:
        bias = 0 if site.map.bias is None else site.map.bias.numel()
        params, own = self.method.values(site.map, size) + bias, derive_seed(self.seed, site.path)
        return Choice("sketched", size, own, params, options=self.options)

    def priced(self, level: int) -> Plan:
        """The plan at a level with what its network costs."""
        made = self.plan(level)
        if self.batch is not None:
            return replace(made, small=price_model(rebuild(self.model, made), self.batch)._asdict())
        maps = [self.sites[path].map for path in made.choices]
        saved = sum(m.weight.numel() for m in maps)
        kept = sum(self.method.values(self.sites[p].map, c.size) for p, c in made.choices.items())
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
        most = max(self.method.most(site.map) for site in self.sites.values())
        levels = range(len(self.sites) * most + 1)  # at the last one all is dense
        return self.priced(bisect_left(levels, True, lo=1, key=lambda n: broken(n) is not None) - 1)
