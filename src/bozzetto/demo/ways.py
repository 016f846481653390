"""Three ways to a small network for one seed of the demo: compressed, sketched, plain SVD."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import bozzetto as bz
from bozzetto.analysis.certificate import Certificate, certificate
from bozzetto.demo.digits import calibration, held_out, network, target
from bozzetto.plan import Choice

__all__ = ["COMPRESSED", "SKETCHED", "SVD", "SVD_TUNED", "TARGET", "TUNED", "Run", "Scale", "run"]

TARGET, COMPRESSED, TUNED = "target", "compressed", "compressed, tuned"
SKETCHED, SVD, SVD_TUNED = "sketched, from scratch", "plain SVD", "plain SVD, tuned"


@dataclass(frozen=True)
class Scale:
    """How much the demo does.

    Attributes:
        keep: fraction of the trained values.
        width: channels of the first convolution.
        epochs: of the target's training.
        tuning: epochs of tuning.
    """

    keep: float = 0.25
    width: int = 32
    epochs: int = 14
    tuning: int = 4


@dataclass(frozen=True)
class Run:
    """The networks of one seed, their plans and their accuracies by name, the target first."""

    networks: dict[str, nn.Module]
    plans: dict[str, bz.Plan]
    accuracy: dict[str, float]
    certificate: Certificate


def run(seed: int, scale: Scale, say: Callable[[str], None]) -> Run:
    """Train the target and everything that comes of it, for one seed."""
    data, test = calibration(seed), held_out(seed)
    say(f"seed {seed}: training the target")
    model = target(seed, width=scale.width, epochs=scale.epochs)
    say(f"seed {seed}: compressing")
    compressed, plan = bz.compress(model, scale.keep, data, seed=seed)
    evidence = certificate(model, compressed, plan, data)
    truncated, uniform = truncated_svd(model, scale.keep)
    say(f"seed {seed}: tuning")
    recipe = bz.Recipe(epochs=scale.tuning, lr=1e-3, seed=seed)
    tuned = {
        name: copy.deepcopy(net) for name, net in ((TUNED, compressed), (SVD_TUNED, truncated))
    }
    for net in tuned.values():
        bz.train(net, data, recipe, teacher=model)
    say(f"seed {seed}: training the sketched network from scratch")
    sketched, drawn = bz.sketch(network(seed, width=scale.width), scale.keep, seed=seed)
    bz.train(sketched, data, bz.Recipe(epochs=scale.epochs + scale.tuning, lr=2e-3, seed=seed))
    networks = {
        TARGET: model,
        COMPRESSED: compressed,
        TUNED: tuned[TUNED],
        SKETCHED: sketched,
        SVD: truncated,
        SVD_TUNED: tuned[SVD_TUNED],
    }
    plans = {TARGET: bz.Plan({}, {}), TUNED: plan, SKETCHED: drawn, SVD_TUNED: uniform}
    accuracy = {name: bz.evaluate(net, test) for name, net in networks.items()}
    return Run(networks, plans, accuracy, evidence)


def truncated_svd(model: nn.Module, keep: float) -> tuple[nn.Module, bz.Plan]:
    """The best approximation of the weights, without data, at a common fraction of every layer.

    The output layer stays whole: a quarter of its 10 rows would be a bottleneck of rank 2.
    """
    layers = {
        path: layer
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    output, _ = layers.popitem()
    total = sum(p.numel() for p in model.parameters())
    for percent in range(99, 0, -1):
        choices = {p: c for p, layer in layers.items() if (c := _choice(layer, percent / 100))}
        saved = sum(_values(layers[p]) - c.params for p, c in choices.items())
        if total - saved <= keep * total:
            break
    else:
        raise ValueError(f"no truncated SVD keeps {keep} of the params")
    dense = dict.fromkeys(layers.keys() - choices.keys() | {output}, "left whole")
    plan = bz.Plan(choices, dense, {}, {"params": total}, {"params": total - saved})
    identity = {path: _identity(layers[path]) for path in choices}
    return bz.rebuild(model, plan, identity), plan


def _values(layer: nn.Module) -> int:
    return sum(p.numel() for p in layer.parameters())


def _choice(layer: nn.Linear | nn.Conv2d, fraction: float) -> Choice | None:
    """The rank with that fraction of the weight's values; None if it is below 1."""
    m, d = len(layer.weight), layer.weight[0].numel()
    rank = int(fraction * m * d) // (m + d)
    return Choice("lowrank", rank, 0, rank * (m + d) + m) if rank else None


def _identity(layer: nn.Linear | nn.Conv2d) -> bz.Stats:
    """Moments that say nothing: every input direction counts alike."""
    d = layer.weight[0].numel()
    eye = torch.eye(d, dtype=torch.float64).unsqueeze(0)
    return bz.Stats(eye, torch.zeros(1, d, dtype=torch.float64), None, 1, ())
