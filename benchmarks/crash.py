"""What happens when neurons crash: how tight the bounds are.

python benchmarks/run.py crash-enumerated
"""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bozzetto.analysis.crash import (
    Activation,
    Crash,
    Sampling,
    activation,
    crash,
    crash_bound,
    tolerance,
)
from bozzetto.analysis.crash.faulty import FaultySites, broken_neurons
from bozzetto.linalg import derive_seed
from cifar import SHARED, resnet
from digits import Block, digits

RATES = (1e-4, 1e-3, 1e-2)
PATTERNS = 8000


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(seed)
        return make()


def mlp(act: Callable[[], nn.Module], *widths: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for n, m in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(n, m), act()]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def residual_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Block(8, 8, 1),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


NETS: dict[str, Callable[[], nn.Module]] = {
    "relu 64×4": lambda: mlp(nn.ReLU, 64, 64, 64, 64, 64, 10),
    "tanh 64×4": lambda: mlp(nn.Tanh, 64, 64, 64, 64, 64, 10),
    "sigmoid 64×4": lambda: mlp(nn.Sigmoid, 64, 64, 64, 64, 64, 10),
    "conv": conv_net,
    "conv + bn + residual": residual_net,
}


def fit_(
    net: nn.Module,
    epochs: int = 30,
    seed: int = 0,
    penalty: float = 0.0,
    weights: nn.Module | None = None,
) -> nn.Module:
    """Train on the digits, with a multiple of the gain penalty; copy the weights if told where."""
    x, y, _, _ = digits()
    generator = torch.Generator().manual_seed(derive_seed(seed, "batches"))
    adam = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(50):
            adam.zero_grad()
            loss = F.cross_entropy(net(x[rows]), y[rows])
            (loss + penalty * gain_penalty(net) if penalty else loss).backward()
            adam.step()
    if weights is not None:
        weights.load_state_dict(net.state_dict())
        weights.eval()
    return net.eval()


def gain_penalty(net: nn.Module) -> Tensor:
    """Σ ln ‖W‖_∞, the logarithm of what the papers' bound grows with."""
    return sum(
        (w.abs().flatten(1).sum(1).amax().log() for w in net.parameters() if w.ndim > 1),
        torch.zeros(()),
    )


@cache
def trained(name: str) -> nn.Module:
    return fit_(seeded(NETS[name], 0))


@dataclass(frozen=True)
class Measured:
    """Mean |error| by input and output, and its standard error."""

    mean: Tensor
    error: Tensor


def measured(net: nn.Module, x: Tensor, p: float, patterns: int) -> Measured:
    run = broken_neurons(FaultySites(net, x), Crash(), None, "neuron")
    total, squares, width = 0.0, 0.0, 500
    with torch.no_grad():
        healthy = run(x, 0.0, range(1), 0)
        for at in range(0, patterns, width):
            errors = (run(x, p, range(at, at + width), 1) - healthy).abs().double()
            total, squares = total + errors.sum(0), squares + (errors**2).sum(0)
    mean = torch.as_tensor(total) / patterns
    variance = (torch.as_tensor(squares) / patterns - mean**2).clamp(min=0)
    return Measured(mean, (variance / patterns).sqrt())


def looseness(bound: Tensor, truth: Tensor) -> float:
    """Geometric mean of bound / truth where there is an error at all."""
    some = truth > 0
    return (bound[some] / truth[some]).log().mean().exp().item()


def exact(net: nn.Module, x: Tensor, widths: list[int], p: float) -> Tensor:
    """E|error| over every crash pattern of an MLP's hidden layers, (b, m)."""
    acts = [m for m in net if not isinstance(m, nn.Linear | nn.Flatten)]  # type: ignore[union-attr]
    alive = torch.cartesian_prod(*[torch.tensor([1.0, 0.0]).double()] * sum(widths))
    masks = alive.split(widths, 1)
    chance = (alive * (1 - p) + (1 - alive) * p).prod(1)
    rows = len(alive)
    with torch.no_grad():
        healthy = net(x)
        hooks = [
            act.register_forward_hook(
                lambda module, args, out, m=mask: (
                    out.unflatten(0, (rows, -1)) * m[:, None]
                ).flatten(0, 1)
            )
            for act, mask in zip(acts, masks, strict=True)
        ]
        faulty = net(x.repeat(rows, 1)).unflatten(0, (rows, len(x)))
    [hook.remove() for hook in hooks]
    return torch.einsum("p,pbm->bm", chance, (faulty - healthy).abs())


def enumerated() -> dict:
    """105 random nets of 12 hidden neurons or fewer; single crashes only run exactly."""
    shapes = [(4, 4, 3), (5, 5, 3), (4, 4, 4, 2), (3, 3, 3, 3, 2), (6, 6, 2)]
    found: dict[str, list[Tensor]] = {}
    compared = violations = 0
    for act, shape, seed in itertools.product((nn.ReLU, nn.Tanh, nn.Sigmoid), shapes, range(7)):
        net = seeded(lambda a=act, s=shape: mlp(a, s[0], *s), seed).double()
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(3, shape[0], generator=generator, dtype=torch.float64)
        widths = list(shape[:-1])
        for p in (1e-3, 1e-2, 1e-1, 0.3, 0.5):
            truth = exact(net, x, widths, p)
            result = crash_bound(net, p, x=x, patterns=sum(widths) + 1)
            for name, bound in {**result.bounds, "best": result.best}.items():
                found.setdefault(name, []).append((bound / truth)[truth > 1e-12].log())
                violations += int((bound < truth * (1 - 1e-9) - 1e-12).sum())
            compared += truth.numel()
    loose = {name: torch.cat(v).mean().exp().item() for name, v in found.items()}
    return {"compared": compared, "violations": violations, "rows": [loose]}


def trained_nets() -> dict:
    """Bounds against Monte Carlo on nets trained on the digits."""
    _, _, test, labels = digits()
    x, rows, compared, violations = test[:4], [], 0, 0
    for name in NETS:
        net = trained(name)
        accuracy = (net(test).argmax(1) == labels).float().mean().item()
        for p in (*RATES, 0.1):
            start = time.perf_counter()
            result = crash_bound(net, p, x=x, sampling=Sampling(PATTERNS, 0.999, 0))
            seconds = time.perf_counter() - start
            truth = measured(net, x, p, PATTERNS)
            row = {"net": name, "accuracy": accuracy, "p": p, "seconds": seconds}
            bounds = {**result.bounds, "best": result.best, "sampled": result.sampled}
            for kind, bound in bounds.items():
                assert bound is not None
                row[kind] = looseness(bound, truth.mean)
                violations += int((bound < truth.mean - 5 * truth.error).sum())
            compared += truth.mean.numel()
            rows.append(row)
    return {"compared": compared, "violations": violations, "rows": rows}


class Steep(nn.Module):
    """The papers' activation sigmoid(4Kx), whose Lipschitz constant is K."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(4 * self.k * x)


@activation.register
def _(module: Steep) -> Activation:
    return Activation(module, module.k, 1.0, (4 * module.k) ** 2 / (6 * math.sqrt(3)))


def depth() -> dict:
    """The papers' experiment: one failing layer of six, by its distance from the output and K."""
    _, _, test, _ = digits()
    rows: list[dict[str, object]] = []
    for k in (0.25, 0.5, 1.0, 2.0):
        net = fit_(seeded(lambda k=k: mlp(lambda: Steep(k), 64, *[24] * 6, 10), 0), epochs=20)
        x = test[:4]
        for layer in range(6):
            name = str(2 + 2 * layer)
            run = crash(net, [x], 0.05, layers=[name], patterns=2000)
            bound = crash_bound(net, {name: 0.05}, x=x)
            rows.append(
                {
                    "K": k,
                    "layers behind": 5 - layer,
                    "measured": run.error.mean().item(),
                    **{kind: value.mean().item() for kind, value in bound.bounds.items()},
                    "best": bound.best.mean().item(),
                }
            )
    return {"rows": rows}


def resnet20() -> dict:
    """A bound for ResNet-20: processor seconds, and how it compares with the papers' bound."""
    if not SHARED.exists():
        return {"rows": []}
    net, rows = resnet(20).eval(), []
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for p in (1e-6, 1e-4, 1e-2):
        start = time.process_time()
        result = crash_bound(net, p, x=x)
        seconds = time.process_time() - start
        truth = measured(net, x, p, 500)
        loose = {name: looseness(v, truth.mean) for name, v in result.bounds.items()}
        rows.append({"p": p, "seconds": seconds, "measured": truth.mean.mean().item(), **loose})
    return {"rows": rows}


def tolerated() -> dict:
    """Crashes a prediction survives, by certificate, adversary and chance."""
    _, _, test, _ = digits()
    rows: list[dict[str, object]] = []
    for name in ("relu 64×4", "tanh 64×4"):
        for layer in ("2", "4", "6", "8"):
            found = tolerance(trained(name), test[:10], layer)
            means = {row["by"]: row["mean"] for row in found.rows()}
            rows.append({"net": name, "layer": layer, "width": found.width, **means})
    return {"rows": rows}


BENCHMARKS: dict[str, Callable[[], dict]] = {
    "crash-enumerated": enumerated,
    "crash-trained": trained_nets,
    "crash-depth": depth,
    "crash-resnet20": resnet20,
    "crash-tolerance": tolerated,
}
