"""Structured derivatives: the tangent kernel from layers' inputs and output gradients.

A weight's gradient is a sum over positions of (output gradient) ⊗ (input); its inner products are
formed either from inner products of the two, or from the gradient itself, whichever takes fewer
multiplications (Novak et al., arXiv 2206.08720). A weight used several times just has more
positions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from bozzetto.batches import first_input
from bozzetto.tangent.empirical.network import ALL, Network, by_rows, jacobian
from bozzetto.tangent.empirical.parts import Flat, Lookup, Outer, Part

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class Factors:
    """What a block of inputs contributes, by parameter."""

    parts: dict[str, Part]
    outputs: int

    def kernel(self, other: Factors, outputs: Literal["each", "mean"]) -> Tensor:
        """The tangent kernel between two blocks: (N, N', O, O) or (N, N')."""
        total = sum(_meet(p, other.parts[k], outputs) for k, p in self.parts.items())
        assert isinstance(total, Tensor)
        return total if outputs == "each" else total / self.outputs


def stacked(blocks: list[Factors]) -> Factors:
    """The factors of several blocks of inputs as one; takes the blocks' parts away from them."""
    names = list(blocks[0].parts)
    parts = {k: _stacked([b.parts.pop(k) for b in blocks]) for k in names}
    return Factors(parts, blocks[0].outputs)


def _stacked(parts: list[Part]) -> Part:
    kind: Any = type(parts[0])
    held = [[getattr(p, f.name) for p in parts] for f in fields(kind)]
    return kind(*(torch.cat(v) if isinstance(v[0], Tensor) else v[0] for v in held))


def _meet(a: Part, b: Part, outputs: Literal["each", "mean"]) -> Tensor:
    """Inner products of two parts; inputs of other lengths may have settled in another way."""
    if type(a) is not type(b):
        a, b = (Flat(p.flat()) if isinstance(p, Outer) else p for p in (a, b))
    return a.kernel(b, outputs)  # type: ignore[arg-type]


def _linear(m: nn.Linear, a: Tensor, d: Tensor) -> dict[str, Part]:
    a = a.reshape(len(a), 1, -1, a.shape[-1])
    d = d.reshape(*d.shape[:2], 1, -1, d.shape[-1])
    return {"weight": Outer(d, a), "bias": Flat(d.sum((2, 3)))}


def _conv(m: nn.Conv1d | nn.Conv2d | nn.Conv3d, a: Tensor, d: Tensor) -> dict[str, Part]:
    g, taps = m.groups, m.kernel_size
    mode = "constant" if m.padding_mode == "zeros" else m.padding_mode
    a = F.pad(a, m._reversed_padding_repeated_twice, mode=mode)
    for axis, size in enumerate(taps):
        reach = (size - 1) * m.dilation[axis] + 1
        a = a.unfold(2 + axis, reach, m.stride[axis])[..., :: m.dilation[axis]]
    places = a.shape[2 : 2 + len(taps)].numel()
    a = a.unflatten(1, (g, -1)).flatten(3, 2 + len(taps))  # (N, g, c, P, *taps)
    a = a.transpose(2, 3).reshape(len(a), g, places, -1)
    d = d.flatten(3).unflatten(2, (g, -1)).transpose(3, 4)  # (N, O, g, P, m)
    return {"weight": Outer(d, a), "bias": Flat(d.sum(3).flatten(2))}


def _embedding(m: nn.Embedding, a: Tensor, d: Tensor) -> dict[str, Part]:
    return {"weight": Lookup(d.reshape(*d.shape[:2], -1, d.shape[-1]), a.flatten(1), m.padding_idx)}


def _scaled(normal: Tensor, d: Tensor) -> dict[str, Part]:
    """Channels on axis 1 of `normal`."""
    value = (d * normal[:, None]).flatten(3).sum(-1) if d.ndim > 3 else d * normal[:, None]
    return {"weight": Flat(value), "bias": Flat(d.flatten(3).sum(-1) if d.ndim > 3 else d)}


def _batch_norm(m: nn.modules.batchnorm._BatchNorm, a: Tensor, d: Tensor) -> dict[str, Part]:
    return _scaled(F.batch_norm(a, m.running_mean, m.running_var, eps=m.eps), d)


def _group_norm(m: nn.GroupNorm, a: Tensor, d: Tensor) -> dict[str, Part]:
    return _scaled(F.group_norm(a, m.num_groups, eps=m.eps), d)


def _layer_norm(m: nn.LayerNorm, a: Tensor, d: Tensor) -> dict[str, Part]:
    normal = F.layer_norm(a, m.normalized_shape, eps=m.eps)[:, None]
    last = len(m.normalized_shape)
    both = [t.flatten(-last) for t in (d * normal, d)]
    both = [t.reshape(*t.shape[:2], -1, t.shape[-1]) for t in both]
    return {"weight": Flat(both[0].sum(2)), "bias": Flat(both[1].sum(2))}


RULES: dict[type[nn.Module], Callable[..., dict[str, Part]]] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Conv3d: _conv,
    nn.Embedding: _embedding,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
}


@dataclass(frozen=True)
class _Call:
    """One use of a module: its input and its output."""

    module: nn.Module
    a: Tensor
    y: Tensor


def _record(net: Network, x: Tensor) -> tuple[list[_Call], Tensor]:
    """Run the model once with hooks on the modules that a rule knows, and take the hooks off.

    Buffers that it writes are copies.
    """
    calls: list[_Call] = []

    def hook(
        module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], y: Tensor
    ) -> Tensor:
        y = y if y.requires_grad else y.requires_grad_()  # below it all may be frozen
        calls.append(_Call(module, first_input(args, kwargs).detach(), y))
        return y.clone()  # an activation in place must not overwrite what we differentiate in

    handles: list[RemovableHandle] = []
    try:
        for module in net.model.modules():
            if type(module) in RULES and "parametrizations" not in dict(module.named_children()):
                handles.append(module.register_forward_hook(hook, with_kwargs=True))  # noqa: PERF401
        buffers = {k: v.clone() for k, v in net.model.named_buffers()}
        with torch.enable_grad():
            out = by_rows(functional_call(net.model, buffers, (x,)))
    finally:
        for handle in handles:
            handle.remove()
    return calls, out


def factors(
    net: Network, x: Tensor, outputs: Literal["each", "mean"], only: slice = ALL
) -> Factors:
    """The parts of every parameter for a block of inputs: one forward pass, O backward passes.

    `only` keeps to some outputs, as if the network had no others.

    Weights' gradients are formed here, once a block, where that order is the cheaper.

    Raises:
        ValueError: if a parameter known by its layer is also used in another way.
    """
    calls, out = _record(net, x)
    out = out[:, only]
    ys = [c.y for c in calls]
    rows = [
        torch.autograd.grad(out[:, o].sum(), ys, retain_graph=True, materialize_grads=True)
        for o in range(out.shape[1] if ys else 0)
    ]
    names = {id(p): k for k, p in net.model.named_parameters() if k in net.parameters}
    found: dict[str, list[Part]] = defaultdict(list)
    for call, gradients in zip(calls, zip(*rows, strict=True), strict=True):
        rule = RULES[type(call.module)](call.module, call.a, torch.stack(gradients, 1).detach())
        for key, part in rule.items():
            name = names.get(id(getattr(call.module, key)))
            if name is not None:
                found[name].append(part)
    parts = {k: _joined(p, outputs) for k, p in found.items() if len({type(q) for q in p}) == 1}
    _verify(net, out, parts)
    others = jacobian(net, x, set(net.parameters) - set(parts), only)
    return Factors(parts | {k: Flat(v) for k, v in others.items()}, out.shape[1])


def _joined(parts: list[Part], outputs: Literal["each", "mean"]) -> Part:
    total = parts[0]
    for part in parts[1:]:
        total = total.joined(part)  # type: ignore[arg-type]
    return total.settled(outputs) if isinstance(total, Outer) else total


def _verify(net: Network, out: Tensor, parts: dict[str, Part]) -> None:
    """Compare one input's gradient with autograd's: a weight may be used outside its layer.

    It is that of a combination of the outputs; their sum may be constant, as of a softmax.
    """
    weights = {k: p for k, p in net.model.named_parameters() if k in parts}
    if not weights:
        return
    mix = torch.arange(1, out.shape[1] + 1, device=out.device).sin().to(out)
    true = torch.autograd.grad((out[0] * mix).sum(), list(weights.values()), materialize_grads=True)
    tolerance = max(1e-3, 32 * torch.finfo(out.dtype).eps)
    for (name, _), gradient in zip(weights.items(), true, strict=True):
        norm, mine = gradient.double().square().sum(), _norm(parts[name], mix).double()
        if (mine - norm).abs() > tolerance * norm + 1e-20:
            raise ValueError(f"{name} is also used outside its own layer: take route='jacobian'")


def _norm(part: Part, mix: Tensor) -> Tensor:
    """The squared norm of the first input's gradient of a combination of the outputs (O,)."""

    def mixed(d: Tensor) -> Tensor:
        return torch.einsum("o,no...->n...", mix, d[:1]).unsqueeze(1)  # (1, 1, ...)

    match part:
        case Outer():
            one: Part = Outer(mixed(part.d), part.a[:1])
        case Lookup():
            one = Lookup(mixed(part.d), part.index[:1], part.padding)
        case Flat():
            one = Flat(mixed(part.value))
    return one.kernel(one, "mean")[0, 0]  # type: ignore[arg-type]
