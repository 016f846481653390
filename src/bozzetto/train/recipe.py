"""Recipe: how to train, as frozen data that can be read, edited and saved."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import inf
from numbers import Real
from typing import Any, Literal

from torch.optim import Optimizer

from bozzetto.train.losses import LOSSES, Loss
from bozzetto.train.optimizers import OPTIMIZERS, Groups
from bozzetto.train.schedule import SCHEDULES

__all__ = ["Recipe"]

_PRECISIONS = ("float32", "bfloat16")
_WHOLE = {"epochs": 1, "accumulate": 1, "seed": -inf}  # the least each may be
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "lr": (lambda value: 0 < value < inf, "> 0"),
    "momentum": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "weight_decay": (lambda value: 0 <= value < inf, ">= 0"),
    "warmup": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "label_smoothing": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "distillation": (lambda value: 0 <= value <= 1, "in [0, 1]"),
    "temperature": (lambda value: 0 < value < inf, "> 0"),
    "feature_weight": (lambda value: 0 < value < inf, "> 0"),
    "clip": (lambda value: 0 < value < inf, "> 0"),
    "ema": (lambda value: 0 < value < 1, "in (0, 1)"),
    "dropout": (lambda value: 0 <= value < 1, "in [0, 1)"),
}
_MAY_BE_NONE = ("lr", "weight_decay", "clip", "ema", "dropout")
_DELIVERED = ("last", "best")
Task = Literal["classification", "regression", "embeddings"]
_TUNING: dict[str, dict[str, Any]] = {
    "classification": {"epochs": 3, "lr": 1e-3, "dropout": 0.0},
    "regression": {"epochs": 3, "lr": 1e-3, "dropout": 0.0, "loss": "mse"},
    "embeddings": {"epochs": 1, "lr": 5e-5, "dropout": 0.0, "loss": "similarity", "warmup": 0.1},
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train: the defaults suit the brief tuning of a compressed classifier.

    Attributes:
        epochs: passes over the loader.
        optimizer: "sgd", "adam", "adamw", or a callable from parameter groups to an object with
            torch.optim's conventions (wrappers of optimisers too). An optimiser with the methods
            `eval` and `train`, as schedule-free ones have, is switched for evaluation and at the
            end. Where they are set, `lr` and `weight_decay` stand in the groups, whose values win
            over those that a callable gives its optimiser.
        settings: further arguments of a named optimiser, as `{"nesterov": True}`.
        lr: highest learning rate of the schedule; None takes the optimiser's own (torch: 0.001).
            "adam" and "adamw" give sketched cores √c times as much, c the dense weight's values
            over theirs; a callable finds c as "reduction" in its groups.
        momentum: of sgd, and β₁ of adam and adamw; a callable sets its own.
        weight_decay: None takes the optimiser's own (torch: 0.01 for adamw, else 0). Never on
            biases, parameters of normalisations and any other parameter with one axis.
        schedule: "cosine", "onecycle", "step" (a tenth after 1/2 and again after 3/4 of the
            steps) or "constant": what multiplies the learning rate, step by step.
        warmup: share of all steps in which the learning rate rises.
        loss: "cross_entropy", "mse", "cosine" (1 - cosine similarity along the last axis),
            "similarity" (squared differences of the cosine similarities among the batch's rows), a
            callable from (what the model returns, target) to a scalar, or "auto": the loss that
            the model itself returns, else cross entropy for integer targets, else mse.
        label_smoothing: of cross entropy; Szegedy et al. 2016.
        distillation: weight w of the teacher's term in (1 - w) loss + w term. The term is all
            there is when a batch has no target, and absent when there is no teacher. It is the
            Kullback-Leibler divergence of class probabilities at `temperature` T, times T²
            (Hinton, Vinyals and Dean 2015), for cross entropy and integer targets; for "cosine"
            and "similarity" that loss; else the mean squared error between the outputs.
        temperature: T.
        features: paths of modules in student and teacher; `feature_weight` times the mean of
            their outputs' relative squared differences is added to the loss.
        feature_weight: of that term.
        clip: largest norm of the gradient; None does not clip.
        ema: decay d of an exponential moving average of the weights, which is what is evaluated
            and delivered; at update t the decay is min(d, (1 + t) / (10 + t)), so that short runs
            forget the start. None delivers the last weights.
        dropout: chance of every dropout in the model while it trains; None leaves each its own.
        deliver: "last", or "best": of the weights before training and after each epoch those of
            the lowest objective on `val`, which then needs no labels; so training never ends
            worse by what it minimises than it began.
        accumulate: batches whose gradients make one step, each counted by its size.
        precision: "float32" (as the model is) or "bfloat16" (autocast).
        seed: of dropout and of the order of a loader that shuffles.
    """

    epochs: int = 5
    optimizer: str | Callable[[Groups], Optimizer] = "adamw"
    settings: Mapping[str, Any] = field(default_factory=dict)
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float | None = None
    schedule: str = "cosine"
    warmup: float = 0.05
    loss: str | Loss = "auto"
    label_smoothing: float = 0.0
    distillation: float = 0.5
    temperature: float = 2.0
    features: Sequence[str] = ()
    feature_weight: float = 1.0
    clip: float | None = None
    ema: float | None = None
    dropout: float | None = None
    deliver: Literal["last", "best"] = "last"
    accumulate: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError that names the field, what it needs and what came."""
        for name, least in _WHOLE.items():
            _check_whole(name, getattr(self, name), least)
        for name in _RANGES:
            _check_range(name, getattr(self, name))
        _check_name("optimizer", self.optimizer, OPTIMIZERS, or_callable=True)
        _check_name("loss", self.loss, ["auto", *LOSSES], or_callable=True)
        _check_name("schedule", self.schedule, SCHEDULES, or_callable=False)
        _check_name("precision", self.precision, _PRECISIONS, or_callable=False)
        _check_name("deliver", self.deliver, _DELIVERED, or_callable=False)
        paths = self.features if isinstance(self.features, Sequence) else [None]
        if isinstance(paths, str) or not all(isinstance(path, str) for path in paths):
            raise TypeError(f"features needs a sequence of paths; got {self.features!r}")
        if not isinstance(self.settings, Mapping):
            raise TypeError(f"settings needs a mapping; got {self.settings!r}")
        object.__setattr__(self, "features", tuple(self.features))  # as a file gives a list
        if self.settings and callable(self.optimizer):
            raise ValueError("settings are of a named optimizer; a callable sets its own")
        if self.label_smoothing and self.loss not in ("auto", "cross_entropy"):
            raise ValueError(f"label_smoothing needs cross entropy; got loss={self.loss!r}")

    @classmethod
    def tuning(cls, task: Task) -> "Recipe":
        """A short recipe to tune a compressed network, its target as the teacher.

        "classification" learns from class numbers and the teacher's probabilities, half each, or
        without labels from the teacher's logits; "regression" from values and the teacher's;
        "embeddings" from which of the teacher's vectors are near each other, so batches of 32 or
        more suit it. All go without dropout, which cost a small network more than it gave. With
        `dataclasses.replace(…, deliver="best")` and held-out batches as `val` the network never
        ends worse there than it began.

        Raises:
            ValueError: for another task.
        """
        if task not in _TUNING:
            raise ValueError(f"task needs to be one of {[*_TUNING]}; got {task!r}")
        return cls(**_TUNING[task])

    def to_dict(self) -> dict[str, Any]:
        """Every field, ready for JSON.

        Raises:
            TypeError: if the optimizer or the loss is a callable, which no file can hold.
        """
        for name in ("optimizer", "loss"):
            if callable(value := getattr(self, name)):
                raise TypeError(f"a recipe with a callable cannot be saved: {name} is {value!r}")
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"settings": dict(self.settings), "features": list(self.features)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Recipe":
        """The recipe of a `to_dict`; fields that are absent take their defaults.

        Raises:
            ValueError: if a field is unknown or out of range.
            TypeError: for something else than a mapping, or a field of another type.
        """
        if not isinstance(data, Mapping):
            raise TypeError(f"a recipe is a mapping of its fields; got {data!r}")
        known = [f.name for f in fields(cls)]
        if unknown := sorted(data.keys() - set(known)):
            raise ValueError(f"a recipe has the fields {known}; got {unknown}")
        return cls(**data)


def _check_whole(name: str, value: object, least: float) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} needs a whole number; got {value!r}")
    if value < least:
        raise ValueError(f"{name} needs to be >= {least}; got {value}")


def _check_range(name: str, value: object) -> None:
    holds, wanted = _RANGES[name]
    if value is None and name in _MAY_BE_NONE:
        return
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} needs a number; got {value!r}")
    if not holds(float(value)):
        raise ValueError(f"{name} needs to be {wanted}; got {value}")


def _check_name(name: str, value: object, names: Collection[str], *, or_callable: bool) -> None:
    if or_callable and callable(value):
        return
    if not isinstance(value, str) or value not in names:
        callables = " or a callable" if or_callable else ""
        raise ValueError(f"{name} needs to be one of {[*names]}{callables}; got {value!r}")
