"""Plans within a bound on latency: forecasts made to agree with what whole networks take."""

import math
from dataclasses import replace
from typing import Any, cast

from torch import nn

from bozzetto.budget import Budget
from bozzetto.knapsack import Unreachable
from bozzetto.menu import Candidate, Menu
from bozzetto.plan import Plan
from bozzetto.prices import time_models
from bozzetto.rebuilding import rebuild

__all__ = ["agreed", "timed", "timely"]

_TRIES = 5  # of a bound on the forecast latency
_CLOSE, _AIM = 0.93, 0.97  # of the asked latency: near enough; what the next try aims at
# Of layers' times within a network to those alone: beyond, a clock was disturbed.
_SCALES = 0.5, 2.0


def agreed(menu: Menu, model: nn.Module, batch: Any) -> Menu:
    """A menu whose layers' times, taken one by one, are scaled to what they take in a network.

    There weights come from further away. The scale makes the forecast of one network right whose
    layers have half of their values, timed beside the target.
    """
    paths = dict.fromkeys(c.site for c in menu.candidates)
    forms = [menu.nearest(path, 0.5) for path in paths]
    half = Plan({c.site: c.choice for c in forms if c.choice}, {})
    times = time_models({"target": model, "half": rebuild(model, half)}, batch)
    whole = [c for c in menu.candidates if c.choice is None]
    alone = sum(c.price["latency"] for c in whole) - sum(c.price["latency"] for c in forms)
    low, high = _SCALES
    scale = (times["target"] - times["half"]) / alone if alone else 1.0
    scale = min(high, max(low, scale)) if scale > 0 else 1.0
    target = menu.target | {"latency": times["target"]}
    return replace(menu, target=target, candidates=[_scaled(c, scale) for c in menu.candidates])


def _scaled(candidate: Candidate, scale: float) -> Candidate:
    latency = round(scale * candidate.price["latency"])
    choice = candidate.choice and replace(candidate.choice, latency=latency)
    return replace(candidate, choice=choice, price=candidate.price | {"latency": latency})


def timely(menu: Menu, model: nn.Module, batch: Any, budget: Budget) -> Plan:
    """The best plan whose network, timed beside the target, keeps the bound on latency.

    The sum of the layers' times is a forecast: the bound on it moves until the network's own
    time is at most what was asked and little less.
    """
    asked = bound = cast(float, budget.latency)
    found, fastest = None, math.inf
    for _ in range(_TRIES):
        made = timed(menu.choose(replace(budget, latency=bound)), model, batch)
        ratio = made.kept("latency")
        fastest = min(fastest, ratio)
        found = made if ratio <= asked else found
        if _CLOSE * asked <= ratio <= asked or (bound == 1 and found):
            break
        bound = min(1.0, _AIM * bound * asked / ratio)
    if found is None:
        raise Unreachable(f"no plan keeps {asked} of the latency; the fastest kept {fastest}")
    return found


def timed(made: Plan, model: nn.Module, batch: Any) -> Plan:
    """A plan with the measured times of the target and of the network that it makes."""
    if not made.choices:  # the target itself
        return replace(made, small=made.small | {"latency": made.target["latency"]})
    networks = {"target": model, "small": rebuild(model, made)}
    times = time_models(networks, batch)
    target = made.target | {"latency": times["target"]}
    return replace(made, target=target, small=made.small | {"latency": times["small"]})
