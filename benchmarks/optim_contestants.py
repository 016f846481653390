"""The contestants of the study of optimisers, and the networks on the digits that they train."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from bozzetto.optim import Anderson, Interpolatron
from bozzetto.optim.anderson import Domain
from digits import mlp, resnet


@dataclass(frozen=True)
class Problem:
    """A network on the digits, and how long it is trained."""

    network: Callable[[], nn.Module]
    batch: int
    epochs: int
    target: float  # training loss
    tuning: int  # seeds a rate is judged by
    seeds: int
    rates: int  # of the first grid
    names: tuple[str, ...]  # of the contestants


@dataclass(frozen=True)
class Contestant:
    """An optimiser by learning rate, its grid's centre, what it is compared with, a wrapper."""

    make: Callable[[list[nn.Parameter], float], Optimizer]
    centre: float
    base: str
    wrap: Callable[[Optimizer, int], Optimizer] = lambda inner, steps_in_an_epoch: inner


def momentum(params: list[nn.Parameter], rate: float) -> Optimizer:
    return SGD(params, lr=rate, momentum=0.9)


def nesterov(params: list[nn.Parameter], rate: float) -> Optimizer:
    return SGD(params, lr=rate, momentum=0.9, nesterov=True)


def schedule_free_sgd(params: list[nn.Parameter], rate: float) -> Optimizer:
    """Defazio et al. 2024, from its own package (pip install schedulefree)."""
    import schedulefree

    return schedulefree.SGDScheduleFree(params, lr=rate, momentum=0.9)


def schedule_free_adamw(params: list[nn.Parameter], rate: float) -> Optimizer:
    """Defazio et al. 2024, from its own package (pip install schedulefree)."""
    import schedulefree

    return schedulefree.AdamWScheduleFree(params, lr=rate)


def lookahead(inner: Optimizer, _: int) -> Optimizer:
    return Interpolatron(inner, 1, 5, beta=0.5)


def two_point(inner: Optimizer, _: int) -> Optimizer:
    return Interpolatron(inner, 2, 1)


def block(inner: Optimizer, _: int) -> Optimizer:
    return Interpolatron(inner)


def extrapolation(inner: Optimizer, _: int) -> Optimizer:
    return Interpolatron(inner, 2, 5, weights=(1.3, -0.3))


def by_epoch(inner: Optimizer, steps: int) -> Optimizer:
    return Anderson(inner, 3, steps, ridge=0.1)


def per_step(domain: Domain, inner: Optimizer, _: int) -> Optimizer:
    return Anderson(inner, 5, domain=domain, ridge=1.0)


CONTESTANTS: dict[str, Contestant] = {
    "SGD": Contestant(SGD, 0.4, "SGD"),
    "2-point(SGD)": Contestant(SGD, 0.8, "SGD", two_point),
    "Anderson5(SGD)": Contestant(SGD, 0.8, "SGD", partial(per_step, "affine")),
    "simplex5(SGD)": Contestant(SGD, 0.8, "SGD", partial(per_step, "simplex")),
    "Anderson10(SGD)": Contestant(SGD, 0.4, "SGD", lambda inner, _: Anderson(inner, 10)),
    "momentum": Contestant(momentum, 0.1, "momentum"),
    "Nesterov": Contestant(nesterov, 0.1, "momentum"),
    "Lookahead(momentum)": Contestant(momentum, 0.2, "momentum", lookahead),
    "Interpolatron(momentum)": Contestant(momentum, 0.2, "momentum", block),
    "extrapolation(momentum)": Contestant(momentum, 0.1, "momentum", extrapolation),
    "Anderson/epoch(momentum)": Contestant(momentum, 0.1, "momentum", by_epoch),
    "schedule-free SGD": Contestant(schedule_free_sgd, 3.2, "momentum"),
    "Adam": Contestant(Adam, 0.016, "Adam"),
    "AdamW": Contestant(AdamW, 0.016, "Adam"),  # weight decay 0.01
    "Lookahead(Adam)": Contestant(Adam, 0.032, "Adam", lookahead),
    "2-point(Adam)": Contestant(Adam, 0.032, "Adam", two_point),
    "Interpolatron(Adam)": Contestant(Adam, 0.032, "Adam", block),
    "Anderson/epoch(Adam)": Contestant(Adam, 0.016, "Adam", by_epoch),
    "schedule-free AdamW": Contestant(schedule_free_adamw, 0.032, "Adam"),
}
FULL_BATCH = ("SGD", "2-point(SGD)", "Anderson10(SGD)", "momentum", "Nesterov", "Adam")
STOCHASTIC = tuple(name for name in CONTESTANTS if name != "Anderson10(SGD)")
DEEP = (
    *("momentum", "Nesterov", "Lookahead(momentum)", "Interpolatron(momentum)"),
    *("schedule-free SGD", "Adam", "AdamW", "Lookahead(Adam)", "Interpolatron(Adam)"),
    "schedule-free AdamW",
)
DEEPEST = (
    *("momentum", "Lookahead(momentum)", "Interpolatron(momentum)", "Nesterov"),
    *("schedule-free SGD", "Adam", "AdamW", "Interpolatron(Adam)", "schedule-free AdamW"),
)
PROBLEMS = {
    "optim-mlp": Problem(mlp, 64, 20, 0.02, 3, 5, 5, STOCHASTIC),
    "optim-fullbatch": Problem(mlp, 1437, 200, 0.02, 2, 3, 5, FULL_BATCH),
    "optim-resnet20": Problem(partial(resnet, 20, 8), 128, 12, 0.02, 1, 3, 3, DEEP),
    "optim-resnet98": Problem(partial(resnet, 98, 8), 128, 8, 0.02, 1, 3, 3, DEEPEST),
}
