"""Optimisers by name, and which parameters they decay."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import SGD, Adam, AdamW, Optimizer

__all__ = ["OPTIMIZERS", "Groups", "parameter_groups"]

Groups = list[dict[str, Any]]

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def _sgd(groups: Groups, momentum: float, settings: Mapping[str, Any]) -> Optimizer:
    return SGD(groups, **{"momentum": momentum, **settings})


def _adam(groups: Groups, momentum: float, settings: Mapping[str, Any]) -> Optimizer:
    return Adam(groups, **{"betas": (momentum, 0.999), **settings})


def _adamw(groups: Groups, momentum: float, settings: Mapping[str, Any]) -> Optimizer:
    return AdamW(groups, **{"betas": (momentum, 0.999), **settings})


# Each: (groups, momentum, further arguments) -> optimiser.
OPTIMIZERS: dict[str, Callable[[Groups, float, Mapping[str, Any]], Optimizer]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
}


def parameter_groups(model: nn.Module, *, lr: float | None, weight_decay: float | None) -> Groups:
    """The trainable parameters in two groups, of which the second is never decayed.

    Not decayed are biases, parameters of normalisations and whatever else has one axis or none.
    `lr` and `weight_decay` are written into the groups unless None.

    Raises:
        ValueError: if no parameter is trainable.
    """
    decayed, kept, seen = [], [], set()
    for parameter, decays in _parameters(model):
        if parameter.requires_grad and id(parameter) not in seen:
            seen.add(id(parameter))
            (decayed if decays else kept).append(parameter)
    if not seen:
        raise ValueError("the model needs a parameter with requires_grad=True; it has none")
    common = {} if lr is None else {"lr": lr}
    decay = {} if weight_decay is None else {"weight_decay": weight_decay}
    groups = [
        {"params": decayed, **common, **decay},
        {"params": kept, **common, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Parameter, bool]]:
    """Every parameter with whether it is decayed; a tied one comes once for each owner."""
    for module in model.modules():
        norm = isinstance(module, _NORMS)
        for name, parameter in module.named_parameters(recurse=False):
            yield parameter, not norm and parameter.ndim > 1 and not name.startswith("bias")
