"""`expand`: an exact copy of a model in which every linear map is a layer of its own."""

from collections import Counter
from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from bozzetto import composite, foreign
from bozzetto.batches import copied
from bozzetto.maps import expand_one

__all__ = ["checked", "composite", "expand"]


def expand(
    model: nn.Module,
    needed: Collection[str] | None = None,
    *,
    weights: Literal["copied", "shared"] = "copied",
) -> nn.Module:
    """An exact copy whose composites (attention, recurrent layers) are made of linear layers.

    A composite that shares a parameter with another module stays as it is, so that the tie holds.

    Args:
        model: any module; not changed.
        needed: paths of the expanded model; only composites that hold one of them are rewritten.
            None rewrites all.
        weights: "shared" ones take no memory and are for reading only: parameters of the copy are
            its own, their values the model's. Buffers, which a call may write, are always copied.

    Raises:
        TypeError, ValueError: see `checked`.
    """
    checked(model)
    foreign.register()
    model = _copy(model, weights == "shared")
    uses = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    return _expand(model, "", needed, uses, {})


def checked(model: nn.Module) -> nn.Module:
    """The model, if it can be rewritten.

    Raises:
        TypeError: for what is not a torch module, or was scripted or traced.
        ValueError: for lazy layers that saw no batch yet.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"a model is a torch.nn.Module; got {type(model).__name__}")
    if fixed := [
        name for name, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)
    ]:
        raise TypeError(
            f"what was scripted or traced cannot be rewritten: give the model that it was made of; "
            f"got such modules at {fixed[:5]}"
        )
    if lazy := [name for name, p in model.named_parameters() if is_lazy(p)]:
        raise ValueError(f"lazy layers need to see a batch first: call the model once; {lazy[:5]}")
    return model


def _copy(model: nn.Module, shared: bool) -> nn.Module:
    """A deep copy without gradients, of the same values in memory where they are to be shared.

    Some of torch's modules set an attribute of their own while being copied that hides a child
    (TransformerDecoderLayer's activation): what the source does not have goes.
    """
    memo: dict[int, Any] = {}
    for p in model.parameters() if shared else ():
        if type(p) is nn.Parameter and not p.is_inference():
            memo[id(p)] = nn.Parameter(p.detach(), p.requires_grad)
    made = copied(model, memo)
    for old, new in zip(model.modules(), made.modules(), strict=True):
        for name in vars(new).keys() - vars(old).keys():
            del vars(new)[name]
    for parameter in made.parameters():
        parameter.grad = None
    return made


def _expand(
    module: nn.Module,
    path: str,
    needed: Collection[str] | None,
    uses: Counter[int],
    done: dict[int, nn.Module],
) -> nn.Module:
    key = id(module)
    if key in done:
        return done[key]
    for name, child in module._modules.items():
        if child is not None:
            module._modules[name] = _expand(child, f"{path}{name}.", needed, uses, done)
    tied = any(uses[id(p)] > 1 for p in module.parameters(recurse=False))
    wanted = needed is None or any(f"{other}.".startswith(path) for other in needed)
    done[key] = module if tied or not wanted else expand_one(module)
    return done[key]
