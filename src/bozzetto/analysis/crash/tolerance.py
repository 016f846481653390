"""How many neurons of a layer may crash before a prediction changes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from bozzetto.analysis.crash.bound import crash_bound
from bozzetto.analysis.crash.critical import dead
from bozzetto.analysis.crash.faulty import FaultySites
from bozzetto.analysis.crash.subsets import order_within, patterns_up_to
from bozzetto.linalg import derive_seed


@dataclass(frozen=True)
class Tolerance:
    """Crashes in one layer that leave an input's prediction, per input (b,).

    `certified`: any choice of so many is harmless, by a bound or because all were run. `greedy`: an
    adversary that always kills the neuron that hurts most needs one more. `random`: so many random
    crashes were harmless on average over orders. So certified ≤ the truth ≤ greedy.
    """

    layer: str
    width: int
    certified: Tensor
    greedy: Tensor
    random: Tensor

    def rows(self) -> list[dict[str, object]]:
        """Mean, least and largest over inputs."""
        kinds = {"certified": self.certified, "greedy": self.greedy, "random": self.random}
        return [
            {
                "by": kind,
                "mean": v.double().mean().item(),
                "least": v.min().item(),
                "largest": v.max().item(),
                "width": self.width,
            }
            for kind, v in kinds.items()
        ]

    def figure(self, ax: Any) -> None:
        """The share of inputs whose prediction survives, against the number of crashes."""
        crashes = torch.arange(self.width + 1)
        for kind in ("certified", "greedy", "random"):
            left = (getattr(self, kind) >= crashes.unsqueeze(1)).double().mean(1)
            ax.step(crashes.numpy(), left.numpy(), where="post", label=kind)
        ax.set_xlabel(f"crashed neurons of {self.layer}")
        ax.set_ylabel("share of predictions kept")
        ax.legend()


class Margins(nn.Module):
    """The lead of one class over every other: (b, m) -> (b, m − 1)."""

    def __init__(self, model: nn.Module, best: int, classes: int) -> None:
        super().__init__()
        self.model = model
        self.lead = skip_init(nn.Linear, classes, classes - 1, bias=False)  # draws nothing
        rest = torch.eye(classes)[[i for i in range(classes) if i != best]]
        self.lead.weight = nn.Parameter(torch.eye(classes)[best] - rest)

    def forward(self, x: Tensor) -> Tensor:
        """y_best − y_other."""
        return self.lead(self.model(x))


def tolerance(
    model: nn.Module,
    x: Tensor,
    layer: str,
    *,
    orders: int = 64,
    patterns: int = 4096,
    seed: int = 0,
    rows: int = 4096,
) -> Tolerance:
    """Count the crashes of one layer's neurons that each input's prediction survives.

    Args:
        model: a classifier (b, *s) -> (b, m), m ≥ 2; it is not changed.
        x: inputs.
        layer: the name of the call whose outputs crash.
        orders: how many random orders of crashes to try.
        patterns: how many patterns of few crashes may be run to certify them.
        seed: of the orders.
        rows: how many crash patterns × inputs to run at once.

    Raises:
        ValueError: for an unknown layer, no orders or outputs that are not (b, m).
        NoSoundBound: names the first layer without a sound bound.
    """
    if orders < 1:
        raise ValueError(f"tolerance needs orders >= 1; got {orders}")
    sites = FaultySites(model, x)
    (name,) = sites.chosen([layer])
    with torch.no_grad():
        output = sites.run(x, 1, {})[0]
        if output.ndim != 2 or output.shape[1] < 2:
            raise ValueError(f"tolerance needs outputs (b, m) with m >= 2; got {output.shape}")
        shape = sites.values(x[:1], [name])[name].shape[1:]
        runs = _Runs(sites, x, name, shape, rows)
        greedy = torch.tensor([runs.greedy(i) for i in range(len(x))])
        random = torch.stack([runs.in_order(derive_seed(seed, i)) for i in range(orders)])
        few = runs.few(patterns)
    certified = torch.maximum(few, _certified(model, x, layer, shape.numel(), output))
    return Tolerance(layer, shape.numel(), certified, greedy, random.double().mean(0))


def _certified(model: nn.Module, x: Tensor, layer: str, width: int, output: Tensor) -> Tensor:
    """For each input the largest f whose worst case stays below every margin, by bisection."""
    called = layer.partition(":")[0] in dict(model.named_modules())
    name = f"model.{layer}" if called else layer
    found = []
    for row, best in zip(x.split(1), output.argmax(1).tolist(), strict=True):
        margins = Margins(model, best, output.shape[1])
        low, high = 0, width
        while low < high:
            f = (low + high + 1) // 2
            bound = crash_bound(margins, failures={name: f}, x=row)
            safe = bool((bound.best < bound.healthy).all())
            low, high = (f, high) if safe else (low, f - 1)
        found.append(low)
    return torch.tensor(found)


@dataclass(frozen=True)
class _Runs:
    """Predictions of one layer's crash patterns."""

    sites: FaultySites
    x: Tensor
    name: str
    shape: torch.Size
    rows: int

    def outputs(self, x: Tensor, alive: Tensor) -> Tensor:
        """Outputs (patterns, b, m) for patterns (patterns, width)."""
        chunks = alive.split(max(1, self.rows // len(x)))
        faults = [{self.name: dead(chunk.unflatten(1, self.shape))} for chunk in chunks]
        runs = zip(chunks, faults, strict=True)
        return torch.cat([self.sites.run(x, len(chunk), fault) for chunk, fault in runs])

    def greedy(self, row: int) -> int:
        """Crashes survived by one input when each next one is the most harmful."""
        x, width = self.x[row : row + 1], self.shape.numel()
        alive = torch.ones(width, dtype=torch.bool, device=x.device)
        best = int(self.outputs(x, alive.unsqueeze(0))[0, 0].argmax())
        for survived in range(width):
            left = alive.nonzero().flatten()
            tried = alive.repeat(len(left), 1)
            tried[torch.arange(len(left)), left] = False
            y = self.outputs(x, tried)[:, 0]
            others = y.index_fill(1, torch.tensor([best], device=x.device), -torch.inf).amax(1)
            margin = y[:, best] - others
            alive[left[margin.argmin()]] = False
            if margin.min() <= 0:
                return survived
        return width

    def few(self, patterns: int) -> Tensor:
        """Crashes survived by every input, as far as all choices of so many can be run, (b,)."""
        width = self.shape.numel()
        k = order_within(width, patterns)
        alive = patterns_up_to(width, k).to(self.x.device)
        choice = self.outputs(self.x, alive).argmax(2)  # (patterns, b)
        crashed = (~alive).sum(1, keepdim=True)
        return torch.where(choice != choice[0], crashed, k + 1).amin(0).cpu() - 1

    def in_order(self, seed: int) -> Tensor:
        """Crashes survived by every input when neurons die in one random order, (b,)."""
        generator = torch.Generator().manual_seed(seed)
        width = self.shape.numel()
        rank = torch.randperm(width, generator=generator).to(self.x.device)
        crashed = torch.arange(width + 1, device=self.x.device).unsqueeze(1)
        choice = self.outputs(self.x, rank >= crashed).argmax(2)  # (width + 1, b)
        kept = (choice == choice[0]).long().cumprod(0)
        return kept.sum(0).cpu() - 1
