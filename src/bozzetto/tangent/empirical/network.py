"""A torch network seen as a function of its trainable parameters, without touching it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.dropout import _DropoutNd

Parameters = dict[str, Tensor]
ALL = slice(None)


@dataclass(frozen=True)
class Network:
    """`parameters` that require gradients, and the rest of the state, which stays as it is.

    Raises:
        ValueError: if nothing requires a gradient.
    """

    model: nn.Module
    parameters: Parameters
    rest: Parameters

    def __call__(self, parameters: Parameters, x: Tensor) -> Tensor:
        """Outputs (N, O) at other parameter values; buffers the model would write are copies."""
        rest = {k: v.clone() for k, v in self.rest.items()}
        return by_rows(functional_call(self.model, {**rest, **parameters}, (x,)))

    @property
    def looped(self) -> bool:
        """Whether it has torch's fused recurrent layers, which have no rule for vmap."""
        return any(isinstance(m, nn.RNNBase) for m in self.model.modules())

    @property
    def coupled(self) -> bool:
        """Whether inputs of a batch see each other: batch norm on batch statistics."""
        return any(
            isinstance(m, nn.modules.batchnorm._BatchNorm)
            and (m.training or m.running_mean is None)
            for m in self.model.modules()
        )


def by_rows(out: object) -> Tensor:
    """What a model returns as (N, O).

    Raises:
        TypeError: if it is not one tensor with a row for every input.
    """
    if not isinstance(out, Tensor) or not out.ndim:
        what = f"a tensor {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise TypeError(f"a tangent kernel needs one output tensor, a row an input; got {what}")
    return out.reshape(len(out), -1)


def network(model: nn.Module) -> Network:
    """The model in the mode it is in (`eval()` it first for the usual kernel).

    Raises:
        ValueError: if nothing requires a gradient, or dropout would draw anew at every run.
    """
    if any(isinstance(m, _DropoutNd) and m.training and m.p for m in model.modules()):
        raise ValueError("dropout in training mode is another network at every run: model.eval()")
    state = {k: v.detach() for k, v in model.named_parameters()}
    wanted = {k for k, v in model.named_parameters() if v.requires_grad}
    if not wanted:
        raise ValueError("a tangent kernel needs parameters that require gradients; got none")
    rest = {k: v for k, v in state.items() if k not in wanted}
    rest |= {k: v.detach() for k, v in model.named_buffers()}
    return Network(model, {k: v for k, v in state.items() if k in wanted}, rest)


def jacobian(
    net: Network, x: Tensor, names: set[str] | None = None, only: slice = ALL
) -> Parameters:
    """∂f/∂parameter for every input and output: {name: (N, O, size)}.

    One backward pass an output, each input apart, or for coupled inputs one backward pass of the
    whole batch for each of its outputs. `names` keeps to some parameters, `only` to some
    outputs.
    """
    chosen = {k: v for k, v in net.parameters.items() if names is None or k in names}
    if not chosen:
        return {}
    others = {k: v for k, v in net.parameters.items() if k not in chosen}

    def one(parameters: Parameters, sample: Tensor) -> Tensor:
        return net({**others, **parameters}, sample[None])[0, only]

    def whole(parameters: Parameters) -> Tensor:
        return net({**others, **parameters}, x)[:, only]

    if net.looped:
        found = _one_by_one(whole, chosen)
    elif net.coupled:
        found = torch.func.jacrev(whole)(chosen)
    else:
        found = torch.func.vmap(torch.func.jacrev(one), (None, 0))(chosen, x)
    return {k: v.detach().flatten(2) for k, v in found.items()}


def _one_by_one(whole: Callable[[Parameters], Tensor], chosen: Parameters) -> Parameters:
    """The Jacobian by one backward pass for every output of every input."""
    with torch.enable_grad():
        leaves = {k: v.detach().requires_grad_() for k, v in chosen.items()}
        out = whole(leaves)
        rows = [
            torch.autograd.grad(o, list(leaves.values()), retain_graph=True, materialize_grads=True)
            for o in out.flatten()
        ]
    stacked = (torch.stack(g).unflatten(0, out.shape) for g in zip(*rows, strict=True))
    return dict(zip(leaves, stacked, strict=True))


class Linearised:
    """Products with the Jacobian J at inputs x and with its transpose, from one forward pass.

    J w is the derivative of u ↦ Jᵀu applied to w: two backward passes, which every layer has,
    where forward derivatives are missing for some.
    """

    def __init__(self, net: Network, x: Tensor) -> None:
        # Fused attention has no second derivative; the plain one has.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            self._parameters = {k: v.detach().requires_grad_() for k, v in net.parameters.items()}
            self._out = net(self._parameters, x)
            self._weights = torch.zeros_like(self._out, requires_grad=True)
            self._pulled = torch.autograd.grad(
                self._out,
                list(self._parameters.values()),
                self._weights,
                create_graph=True,
                materialize_grads=True,
            )
        self.shape = self._out.shape

    def transpose(self, weights: Tensor) -> Parameters:
        """Jᵀ weights: (N, O) -> parameters."""
        found = torch.autograd.grad(
            self._out,
            list(self._parameters.values()),
            weights.to(self._out),
            retain_graph=True,
            materialize_grads=True,
        )
        return dict(zip(self._parameters, found, strict=True))

    def times(self, direction: Parameters) -> Tensor:
        """J direction: (N, O)."""
        pairs = zip(self._pulled, direction.values(), strict=True)
        used = [(p, d) for p, d in pairs if p.requires_grad]
        (found,) = torch.autograd.grad(
            [p for p, _ in used], self._weights, [d for _, d in used], retain_graph=True
        )
        return found
