"""Sensitivity: what making each layer smaller is predicted to do to the loss."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from bozzetto.menu import Candidate, Menu
from bozzetto.plan import Plan

__all__ = ["LayerSensitivity", "Sensitivity", "sensitivity"]


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer.

    Attributes:
        layer: path in the expanded model.
        values: those that it has.
        kept: those that it has after the plan.
        halved: predicted change of the loss if this layer alone keeps at most half of its values
            (as few as it can, where no form of it is so small).
        planned: that of the plan's choice.
    """

    layer: str
    values: int
    kept: int
    halved: float
    planned: float


@dataclass(frozen=True)
class Sensitivity:
    """Of all layers that have a smaller form, in their order."""

    layers: tuple[LayerSensitivity, ...]

    def rows(self) -> list[dict[str, object]]:
        """One row a layer."""
        return [asdict(layer) for layer in self.layers]

    def figure(self, ax: Any) -> None:
        """A bar a layer for half of its values, a dot for what the plan does to it."""
        places = range(len(self.layers))
        ax.barh(places, [x.halved for x in self.layers], color="C0", label="keeping half")
        planned = [x.planned or math.nan for x in self.layers]
        ax.plot(planned, places, "o", color="C1", label="as planned")
        ax.set_xscale("log")
        ax.set_yticks(places, [x.layer or "(the model)" for x in self.layers])
        ax.invert_yaxis()
        ax.set_xlabel("predicted change of the loss")
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def sensitivity(menu: Menu, plan: Plan) -> Sensitivity:
    """What the menu says of every layer, beside what a plan chose from it.

    Raises:
        ValueError: if the plan is not of this menu.
    """
    by_layer: dict[str, list[Candidate]] = {}
    for candidate in menu.candidates:
        by_layer.setdefault(candidate.site, []).append(candidate)
    if foreign := plan.choices.keys() - by_layer.keys():
        raise ValueError(f"the plan is of another menu, which has no {sorted(foreign)[:3]}")
    return Sensitivity(tuple(_layer(path, own, plan) for path, own in by_layer.items()))


def _layer(path: str, own: list[Candidate], plan: Plan) -> LayerSensitivity:
    dense = next(c for c in own if c.choice is None)
    half = 0.5 * dense.price["params"]
    small = [c for c in own if c.price["params"] <= half]
    halved = (
        min(small, key=lambda c: c.impact) if small else min(own, key=lambda c: c.price["params"])
    )
    choice = plan.choices.get(path)
    chosen = next((c for c in own if _same(c, choice)), None)
    if chosen is None:
        raise ValueError(f"the plan is of another menu, which has no such choice for {path!r}")
    kept = chosen.price["params"]
    return LayerSensitivity(path, dense.price["params"], kept, halved.impact, chosen.impact)


def _same(candidate: Candidate, choice: Any) -> bool:
    """Whether it is that choice; measured latencies aside."""
    made = candidate.choice
    if made is None or choice is None:
        return made is choice
    return (made.method, made.size, made.options) == (choice.method, choice.size, choice.options)
