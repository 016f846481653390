"""Layers of the transformers library as plain torch layers; transformers itself is not imported."""

import sys

from torch import nn

from bozzetto.maps import expand_one

_HOME = "transformers.pytorch_utils"


def register() -> None:
    """Teach `expand_one` transformers' `Conv1D`, if that library is loaded by now.

    A model that holds one has loaded it; without it nothing happens. May be called again.
    """
    home = sys.modules.get(_HOME)
    if home is not None and home.Conv1D not in expand_one.registry:
        expand_one.register(home.Conv1D, _conv1d_as_linear)


def _conv1d_as_linear(module: nn.Module) -> nn.Module:
    """The nn.Linear with clones of Wᵀ and b, for y = x W + b and W stored (n, m).

    A subclass, a computed weight, or one with hooks of its own stays as it is.
    """
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    if type(module) is not sys.modules[_HOME].Conv1D or weight is None or bias is None or hooked:
        return module
    n, m = weight.shape
    made = nn.Linear(n, m, device="meta")  # where it draws nothing from the global generator
    made.weight = nn.Parameter(weight.detach().T.contiguous().clone(), weight.requires_grad)
    made.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return made.train(module.training)
