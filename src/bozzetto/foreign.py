"""Layers of other libraries that are a torch layer by another name: their exact twins."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bozzetto.composite.twins import clone, is_exactly, linear
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
        if hooked or module._parameters.get("weight") is None or not is_exactly(module, kind, ()):
            return module
        return twin(module).train(module.training)

    return made


def _conv1d(module: Any) -> nn.Module:
    """Of transformers' `Conv1D`, y = x W + b with W stored (n, m)."""
    values = module.weight.detach().T.clone(memory_format=torch.contiguous_format)
    return linear(nn.Parameter(values, module.weight.requires_grad), _bias(module))


def _graph_linear(module: Any) -> nn.Module:
    """Of torch_geometric's `Linear`, which may learn n from a batch: y = W x + b with W (m, n)."""
    return linear(clone(module.weight), _bias(module))


def _bias(module: Any) -> nn.Parameter | None:
    return None if module.bias is None else clone(module.bias)


_TWINS: dict[tuple[str, str], Callable[[Any], nn.Module]] = {
    ("transformers.pytorch_utils", "Conv1D"): _conv1d,
    ("torch_geometric.nn.dense.linear", "Linear"): _graph_linear,
}
