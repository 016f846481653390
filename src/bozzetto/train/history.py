"""What a training run tells: its progress while it runs, and its history afterwards."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Diverged", "History", "Progress"]


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for callbacks: after every step, and again after every epoch.

    After a step `loss` is the step's and `metrics` is empty; after an epoch they are the epoch's
    mean loss and what the validation gave.

    Attributes:
        epoch: 1 … epochs.
        epochs: how many there will be.
        step: steps of the optimiser done in the whole run.
        steps: how many there will be; None while the loader's length is not known.
        loss: of training.
        lr: learning rate of the last step, of the first parameter group.
        samples_per_second: since the run began or was resumed.
        seconds_left: at that pace; None while `steps` is.
        metrics: name -> value.
    """

    epoch: int
    epochs: int
    step: int
    steps: int | None
    loss: float
    lr: float
    samples_per_second: float
    seconds_left: float | None
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class History:
    """What a training run did; a resumed run's has what went before too.

    Attributes:
        losses: the training loss of every step.
        rates: the learning rate of every step, of the first parameter group.
        epochs: one dict an epoch: "epoch", "step" (the last), "loss" (mean of its steps), "lr" (at
            its end) and the validation's metrics, as "val_accuracy".
    """

    losses: tuple[float, ...] = ()
    rates: tuple[float, ...] = ()
    epochs: tuple[dict[str, float], ...] = ()

    def rows(self) -> list[dict[str, object]]:
        """One row an epoch."""
        return [dict(epoch) for epoch in self.epochs]

    def figure(self, ax: Any) -> None:
        """Loss of every step and epoch, and validation metrics on an axis of their own."""
        ends = [epoch["step"] for epoch in self.epochs]
        ax.plot(range(1, len(self.losses) + 1), self.losses, color="0.8", label="loss of a step")
        ax.plot(ends, [e["loss"] for e in self.epochs], "o-", color="C0", label="loss of an epoch")
        ax.set(xlabel="step", ylabel="training loss")
        lines = list(ax.get_lines())
        if names := sorted({n for epoch in self.epochs for n in epoch if n.startswith("val_")}):
            right = ax.twinx()
            right.set_ylabel(", ".join(names))
            for color, name in enumerate(names, start=1):
                values = [e.get(name, math.nan) for e in self.epochs]
                lines += right.plot(ends, values, "s--", color=f"C{color}", label=name)
        ax.legend(handles=lines, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)


class Diverged(FloatingPointError):
    """The loss or the weights became infinite or NaN, and the run stopped.

    The model has the weights with which that epoch began or was resumed.

    Attributes:
        step: the step of the run at which it was seen, from 1.
        lr: the learning rate of that step, of the first parameter group.
        history: what went well before.
    """

    def __init__(self, what: str, *, step: int, lr: float, history: History) -> None:
        super().__init__(
            f"{what} at step {step}, learning rate {lr:g}; the model has the weights with which "
            f"epoch {len(history.epochs) + 1} began or was resumed; a lower lr or clip may help"
        )
        self.step, self.lr, self.history = step, lr, history
