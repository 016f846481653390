"""Torch's transformer layers with the fused inference path switched off, module by module.

In evaluation `nn.TransformerEncoderLayer` and `nn.TransformerEncoder` may hand the weights of their
children to one fused operator: children are then read, not called (pytorch #82919). Each has an
attribute that only decides about that path; the twin is a shallow copy in which it says no, so also
for a subclass with a forward of its own. Parameters, names and forward stay torch's; the decoder's
layers call their children already and are left alone.

The encoder's fused path returns zeros at positions that the padding mask hides; without that path
they hold what the layers compute there, as in training.
"""

import copy

from torch import nn

from bozzetto.maps import expand_one


def _shallow_copy(module: nn.Module) -> nn.Module:
    """Another module over the same children, parameters and buffers, with registries of its own."""
    twin = type(module).__new__(type(module))  # copy.copy would run the class's own __setstate__
    for name, value in vars(module).items():
        registry = isinstance(value, dict | set)  # of children, parameters, hooks
        twin.__dict__[name] = copy.copy(value) if registry else value
    return twin


@expand_one.register
def _(module: nn.TransformerEncoderLayer) -> nn.Module:
    if not module.activation_relu_or_gelu:
        return module
    twin = _shallow_copy(module)
    twin.__dict__["activation_relu_or_gelu"] = 0
    return twin


@expand_one.register
def _(module: nn.TransformerEncoder) -> nn.Module:
    if not module.use_nested_tensor:
        return module
    twin = _shallow_copy(module)
    twin.__dict__["use_nested_tensor"] = False
    return twin
