"""What makes a network of one size bear more crashes: its training, and how it was made smaller."""

import statistics
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bozzetto as bz
from bozzetto.analysis.crash import crash, crash_bound, with_crashes
from bozzetto.compress import survey
from crash import NETS, fit_, seeded
from digits import digits

RATES = (0.01, 0.05, 0.1, 0.2)
SEEDS = range(3)
PLANNED = 0.1  # the crash probability that plans and fits are made for


def hardened(seed: int, rate: float, penalty: float = 0.0) -> nn.Module:
    """The digits MLP, trained while its neurons crash and with a penalty on its gain."""
    net = seeded(NETS["relu 64×4"], seed)
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(seed)
        fit_(with_crashes(net, rate).train(), 40, seed, penalty, net)
    return net


def qualities(net: nn.Module) -> dict[str, float]:
    """Accuracy on the test digits at every rate, and the bound at 0.01, relative to the output."""
    _, _, test, labels = digits()
    report = crash(net, [(test, labels)], RATES, patterns=200)
    assert report.accuracy is not None
    assert report.healthy_accuracy is not None
    scale = net(test).abs().mean().item()
    found = {"accuracy": report.healthy_accuracy}
    for p, accuracy, error in zip(report.rates, report.accuracy, report.error, strict=True):
        found[f"accuracy_{p:.0%}"] = accuracy.mean().item()
        found[f"relative_error_{p:.0%}"] = error.mean().item() / scale
    bound = crash_bound(net, RATES[0], x=test[:4])
    found[f"relative_bound_{RATES[0]:.0%}"] = bound.best.mean().item() / scale
    return found


def over_seeds(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means, and the standard deviation of accuracies."""
    row = {name: statistics.mean(one[name] for one in found) for name in found[0]}
    spread = {
        f"sd_{name}": statistics.stdev(one[name] for one in found)
        for name in row
        if name.startswith("accuracy")
    }
    return row | spread


def hardening() -> dict:
    """One size, six trainings, three seeds."""
    rows = []
    for rate, penalty in ((0.0, 0.0), (0.05, 0.0), (0.2, 0.0), (0.0, 0.1), (0.0, 0.3), (0.2, 0.1)):
        found = [qualities(hardened(seed, rate, penalty)) for seed in SEEDS]
        head = {"crashes in training": rate, "gain penalty": penalty}
        rows.append(head | over_seeds(found))
    return {"seeds": list(SEEDS), "rows": rows}


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target)


def smaller(net: nn.Module, keep: float, planned: float) -> nn.Module:
    """The network with a fraction of its values, planned and fitted for crashes of hidden neurons.

    The first layer reads the image, which does not crash.
    """
    x, y, _, _ = digits()
    batches = [(x[rows], y[rows]) for rows in torch.arange(len(x)).split(100)]
    made = survey(net, batches, loss=cross_entropy)
    if not planned:
        return made.compress(bz.Budget(params=keep))[0]
    first = next(iter(made.stats))
    stats = {k: s if k == first else s.crashed(planned) for k, s in made.stats.items()}
    return bz.rebuild(net, bz.plan(net, stats, bz.Budget(params=keep)), stats)


def tradeoff() -> dict:
    """Same size: how much more robust, at what accuracy."""
    rows: list[dict[str, object]] = []
    for rate in (0.0, PLANNED):
        dense = [hardened(seed, rate) for seed in SEEDS]
        cells = [("dense", 1.0, 0.0)]
        cells += [("small", keep, planned) for keep in (0.4, 0.2) for planned in (0.0, PLANNED)]
        for kind, keep, planned in cells:
            nets = dense if kind == "dense" else [smaller(net, keep, planned) for net in dense]
            head = {"crashes in training": rate, "keep": keep, "planned for": planned}
            rows.append(head | over_seeds([qualities(net) for net in nets]))
    return {"seeds": list(SEEDS), "rows": rows}


BENCHMARKS: dict[str, Callable[[], dict]] = {
    "crash-hardening": hardening,
    "crash-tradeoff": tradeoff,
}
