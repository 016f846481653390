"""Optimisers by name, and which parameters they decay."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import SGD, Adam, AdamW, Optimizer

from bozzetto.nn.cores import reductions

__all__ = ["OPTIMIZERS", "Groups", "parameter_groups"]

Groups = list[dict[str, Any]]

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def _sgd(groups: Groups, momentum: float, settings: Mapping[str, Any]) -> Optimizer:
    return SGD(groups, **{"momentum": momentum, **settings})


def _adam(groups: Groups, momentum: float, settings: Mapping[str, Any]) -> Optimizer:
    return _raised(Adam(groups, **{"betas": (momentum, 0.999), **settings}))


def _adamw(groups: Groups, momentum: float, settings: Mapping[str, Any]) -> Optimizer:
    return _raised(AdamW(groups, **{"betas": (momentum, 0.999), **settings}))


def _raised(optimizer: Optimizer) -> Optimizer:
    """Learning rates times √c, c the reduction of a group's cores.

    Fresh cores have on average the dense layer's tangent kernel, so gradients of the same norm,
    ‖g‖, but c times fewer entries. A step η sign(g), to which Adam's are near, lowers the loss by
    η ‖g‖₁ ≈ η √entries ‖g‖: √c times less. Gradient descent's step lowers it by η ‖g‖², as in
    the dense layer, and needs no factor.
    """
    for group in optimizer.param_groups:
        group["lr"] *= group["reduction"] ** 0.5
    return optimizer


# Each: (groups, momentum, further arguments) -> optimiser.
OPTIMIZERS: dict[str, Callable[[Groups, float, Mapping[str, Any]], Optimizer]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
}


def parameter_groups(model: nn.Module, *, lr: float | None, weight_decay: float | None) -> Groups:
    """The trainable parameters, those that are decayed before those that never are.

    Not decayed are biases, parameters of normalisations and whatever else has one axis or none.
    `lr` and `weight_decay` are written into the groups unless None; "reduction" is c of the cores
    of sketched layers (`bozzetto.nn.cores`) and 1 of all others, by which groups are parted too.

    Raises:
        ValueError: if no parameter is trainable.
    """
    smaller, members, seen = reductions(model), dict[tuple[bool, float], Any](), set()
    for parameter, decays in _parameters(model):
        if parameter.requires_grad and id(parameter) not in seen:
            seen.add(id(parameter))
            key = not decays, smaller.get(parameter, 1.0)
            members.setdefault(key, []).append(parameter)
    if not seen:
        raise ValueError("the model needs a parameter with requires_grad=True; it has none")
    common = {} if lr is None else {"lr": lr}
    decay = {} if weight_decay is None else {"weight_decay": weight_decay}
    return [
        {
            "params": members[kept, c],
            "reduction": c,
            **common,
            **({"weight_decay": 0.0} if kept else decay),
        }
        for kept, c in sorted(members)
    ]


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Parameter, bool]]:
    """Every parameter with whether it is decayed; a tied one comes once for each owner."""
    for module in model.modules():
        norm = isinstance(module, _NORMS)
        for name, parameter in module.named_parameters(recurse=False):
            yield parameter, not norm and parameter.ndim > 1 and not name.startswith("bias")
