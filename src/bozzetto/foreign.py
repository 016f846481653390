"""Layers of other libraries that are a torch layer by another name: their exact twins."""

import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from bozzetto.maps import expand_one

__all__ = ["register"]


def register() -> None:
    """Teach `expand_one` the layers below, of those libraries that are loaded by now.

    A model that holds one has loaded its library; without it nothing happens. May be called again.
    """
    for (home, name), twin in _TWINS.items():
        kind = getattr(sys.modules.get(home), name, None)
        if kind is not None and kind not in expand_one.registry:
            expand_one.register(kind, _if_exactly(kind, twin))


def _if_exactly(kind: type[nn.Module], twin: Callable[[Any], nn.Module]) -> Callable[..., Any]:
    """The twin of a `kind`; a subclass, one with a computed weight or hooks of its own stays."""

    def made(module: nn.Module) -> nn.Module:
        hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        if type(module) is not kind or hooked or module._parameters.get("weight") is None:
            return module
        return twin(module).train(module.training)

    return made


def _conv1d(module: Any) -> nn.Module:
    """Of transformers' `Conv1D`, y = x W + b with W stored (n, m)."""
    return _linear(module.weight.detach().T.contiguous(), module.weight, module.bias)


def _graph_linear(module: Any) -> nn.Module:
    """Of torch_geometric's `Linear`, which may learn n from a batch: y = W x + b with W (m, n)."""
    return _linear(module.weight.detach(), module.weight, module.bias)


def _linear(values: Any, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """The nn.Linear with clones of these values (m, n) and of the bias (m,)."""
    m, n = values.shape
    made = nn.Linear(n, m, bias is not None, device="meta")  # draws nothing from the generator
    made.weight = nn.Parameter(values.clone(), weight.requires_grad)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return made


_TWINS: dict[tuple[str, str], Callable[[Any], nn.Module]] = {
    ("transformers.pytorch_utils", "Conv1D"): _conv1d,
    ("torch_geometric.nn.dense.linear", "Linear"): _graph_linear,
}
