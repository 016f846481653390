"""Run: a model in training with everything that training changes, so all a checkpoint keeps."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bozzetto.batches import device_of, to
from bozzetto.train.checkpoint import CheckpointMismatch
from bozzetto.train.history import Diverged, History
from bozzetto.train.optimizers import OPTIMIZERS, parameter_groups
from bozzetto.train.processes import Alone, own_part
from bozzetto.train.recipe import Recipe
from bozzetto.train.schedule import rate_factor

__all__ = ["Run"]

_CONVENTIONS = ("step", "zero_grad", "state_dict", "load_state_dict", "param_groups")


class Run:
    """A model, its optimiser and average, and how far they have come.

    Attributes:
        network: the model as it is called in training, wrapped where processes train together.
        epoch: epochs that are complete.
        step: steps done in the current epoch.
        steps: steps of every epoch; None if not known.
        best: {"objective": lowest held out so far, "weights": of then}; None before the first.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        *,
        steps: int | None,
        distilled: bool,
        processes: Alone,
    ) -> None:
        self.model, self.recipe, self.steps, self.distilled = model, recipe, steps, distilled
        self.processes = processes
        self.network, self.optimizer = processes.prepare(model, _optimizer(model, recipe))
        self.highest = [group["lr"] for group in self.optimizer.param_groups]
        self.average = _single(self.weights()) if recipe.ema else None
        self.best: dict[str, Any] | None = None
        self.epoch, self.step = 0, 0
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.epochs: list[dict[str, float]] = []
        self._switch("train")
        self.set_rate()

    @property
    def total(self) -> int | None:
        """Steps of the whole run; None if not known."""
        return None if self.steps is None else self.steps * self.recipe.epochs

    def set_rate(self) -> float:
        """Give the optimiser the learning rates of the coming step; returns the first group's."""
        recipe = self.recipe
        factor = rate_factor(recipe.schedule, len(self.losses), self.total, recipe.warmup)
        for group, highest in zip(self.optimizer.param_groups, self.highest, strict=True):
            group["lr"] = highest * factor
        return float(self.highest[0] * factor)

    def advance(self, loss: float, rate: float) -> None:
        """One step of the optimiser with the gradients that are there."""
        self.optimizer.step()
        self.losses.append(loss)
        self.rates.append(rate)
        self.step += 1
        if self.average is not None and self.recipe.ema is not None:
            done = len(self.losses)
            _mix(self.average, self.model, min(self.recipe.ema, (1 + done) / (10 + done)))

    def complete_epoch(self, metrics: Mapping[str, float]) -> None:
        """Write the epoch that ends into the history."""
        mean = sum(self.losses[-self.step :]) / self.step
        about = {"epoch": self.epoch + 1, "step": len(self.losses), "loss": mean}
        scores = {f"val_{name}": value for name, value in metrics.items()}
        self.epochs.append({**about, "lr": self.rates[-1], **scores})
        self.epoch, self.step = self.epoch + 1, 0

    def weights(self) -> dict[str, Any]:
        """The model's state in storage of its own, name by name even where weights are tied."""
        state = self.model.state_dict().items()
        return {name: v.clone() if isinstance(v, Tensor) else deepcopy(v) for name, v in state}

    def consider(self, objective: float) -> None:
        """Keep the weights that would be delivered now if none before had a lower objective."""
        if self.best is None or objective < self.best["objective"]:
            with self.evaluated():
                self.best = {"objective": objective, "weights": self.weights()}

    def history(self) -> History:
        """So far."""
        return History(tuple(self.losses), tuple(self.rates), tuple(self.epochs))

    def diverged(self, what: str, *, step: int) -> Diverged:
        """The error for something that is not finite at a step (from 1) or because of it."""
        rate = float(self.optimizer.param_groups[0]["lr"])
        return Diverged(what, step=step, lr=rate, history=self.history())

    def check_weights(self) -> None:
        """Raise Diverged if the last step left a parameter that is not finite in any process."""
        named = ((n, p.detach()) for n, p in self.model.named_parameters())
        broken = [name for name, value in named if not bool(own_part(value).isfinite().all())]
        if self.processes.sum(len(broken)):
            which = broken[0] if broken else "of another process"
            raise self.diverged(f"the weights {which} are not finite", step=len(self.losses))

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """The model at the weights that it has now; afterwards it trains on."""
        live = self.weights() if self.average is not None else None
        self._settle()
        try:
            yield
        finally:
            if live is not None:
                self.model.load_state_dict(live)
            self._switch("train")

    def deliver(self) -> None:
        """Leave the model at the weights that the recipe says."""
        self._settle()
        if self.best is not None:
            self.model.load_state_dict(self.best["weights"])

    def _settle(self) -> None:
        """The model at the average, or the optimiser's point for evaluation."""
        self._switch("eval")
        if self.average is not None:
            self.model.load_state_dict(self.average)

    def _switch(self, mode: str) -> None:
        """Schedule-free optimisers keep other weights for training than for evaluation."""
        if callable(switch := getattr(self.optimizer, mode, None)):
            switch()

    def state(self) -> dict[str, Any]:
        """Everything, and what it belongs to, as a tree for a checkpoint."""
        return {
            "of": self._identity(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "best": self.best,
            "place": (self.epoch, self.step),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "rates": torch.tensor(self.rates, dtype=torch.float64),
            "epochs": self.epochs,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`.

        Raises:
            CheckpointMismatch: if it is of another model, recipe or loader.
        """
        for name, here in self._identity().items():
            if (there := state["of"][name]) != here:
                raise CheckpointMismatch(
                    f"the checkpoint is of another {name}: {_difference(there, here)}"
                )
        self.optimizer.load_state_dict(state["optimizer"])  # first, as a wrapper may refuse it
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average = to(state["average"], device_of(self.model))
        self.best = to(state["best"], device_of(self.model))
        self.epoch, self.step = state["place"]
        self.losses, self.rates = state["losses"].tolist(), state["rates"].tolist()
        self.epochs = state["epochs"]

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with."""
        values = {f.name: getattr(self.recipe, f.name) for f in fields(self.recipe)}
        state = self.model.state_dict().items()
        return {
            "recipe": {name: _plain(value) for name, value in values.items()},
            "model": {name: _described(value) for name, value in state},
            "architecture": _architecture(self.model),
            "loader": {"steps of an epoch": self.steps},
            "teacher": {"given": self.distilled},
            "processes": {"count": self.processes.count},
        }


def _optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    groups = parameter_groups(model, lr=recipe.lr, weight_decay=recipe.weight_decay)
    if isinstance(recipe.optimizer, str):
        return OPTIMIZERS[recipe.optimizer](groups, recipe.momentum, recipe.settings)
    optimizer = recipe.optimizer(groups)
    if missing := [name for name in _CONVENTIONS if not hasattr(optimizer, name)]:
        came = type(optimizer).__name__
        raise TypeError(f"the optimizer needs torch.optim's conventions; {came} has no {missing}")
    return optimizer


def _single(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state whose half precision is single: an average moves by less than that resolves."""
    half = (torch.bfloat16, torch.float16)
    return {
        name: v.float() if isinstance(v, Tensor) and v.dtype in half else v
        for name, v in state.items()
    }


@torch.no_grad()
def _mix(average: dict[str, Any], model: nn.Module, decay: float) -> None:
    """Write decay · average + (1 - decay) · model; what is not floating is copied."""
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and value.is_floating_point():
            average[name].lerp_(value.to(average[name].dtype), 1 - decay)
        else:
            average[name] = deepcopy(value)


def _plain(value: Any) -> Any:
    """A value of a recipe as it stands in a checkpoint: callables by their name."""
    if callable(value):
        named = value if hasattr(value, "__qualname__") else type(value)
        return f"{named.__module__}.{named.__qualname__}"
    return dict(value) if isinstance(value, Mapping) else value


def _described(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else "no tensor"


def _architecture(model: nn.Module) -> dict[str, str]:
    """What every module says of itself: sketches are not in the state, but their seeds are here."""
    modules = model.named_modules()
    return {name: f"{type(m).__name__}({m.extra_repr()})" for name, m in modules}


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The first entry that two identities do not share."""
    name = next(n for n in [*here, *there] if there.get(n) != here.get(n))
    return f"{name} is {there.get(name)} in the file and {here.get(name)} here"
