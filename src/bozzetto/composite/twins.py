"""What every exact twin is made with: linear layers of cloned parameters, and what it inherits."""

import copy
from collections.abc import Iterable

from torch import Tensor, nn

EVERY_ROW = slice(None)

# What a forward or backward hook needs to keep working on another module.
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
)


def is_exactly(module: nn.Module, kind: type[nn.Module], parameters: Iterable[str]) -> bool:
    """Whether it is of that very type and those attributes are stored parameters (or None).

    A weight that is computed (weight norm, pruning) is a plain tensor there, not a parameter; a
    parametrized module has a type of its own. Nor may the instance have a forward of its own.
    """
    stored = (getattr(module, name) for name in parameters)
    own = type(module) is kind and "forward" not in vars(module)
    return own and all(p is None or isinstance(p, nn.Parameter) for p in stored)


def clone(parameter: Tensor, rows: slice = EVERY_ROW) -> nn.Parameter:
    """A parameter of its own with the same values (or those rows), device and `requires_grad`."""
    return nn.Parameter(parameter.detach()[rows].clone(), parameter.requires_grad)


def linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """A linear layer that holds this weight (m, n) and bias (m,)."""
    m, n = weight.shape
    made = nn.Linear(n, m, device="meta")  # where it draws nothing from the global generator
    made.weight = weight
    made.register_parameter("bias", bias)
    return made


def inherit(twin: nn.Module, source: nn.Module) -> nn.Module:
    """The twin, with the source's training flag and its forward and backward hooks."""
    for name in _HOOKS:
        setattr(twin, name, copy.copy(getattr(source, name)))
    carried = set(source.modules())
    for part in twin.modules():
        if part not in carried:
            part.training = source.training
    return twin
