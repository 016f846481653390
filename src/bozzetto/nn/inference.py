"""`for_inference`: a copy of a network with everything folded together that evaluation allows."""

import copy
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bozzetto.batches import Batch, call, copied, device_of, tensors, to
from bozzetto.nn.dense import dense_twin
from bozzetto.nn.folded import Folded, absorb_
from bozzetto.nn.parts import CONVS, TRANSPOSED
from bozzetto.timing import sample_in_turn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MAPS = (nn.Linear, *CONVS, *TRANSPOSED, Folded)
_ROUNDS, _GAIN = 9, 0.95
_CLOSE = 1e-3  # of the largest output: what the copy may differ by, in single precision


def for_inference(model: nn.Module, batch: Batch) -> nn.Module:
    """A copy for evaluation only that gives the same outputs in less time.

    Batch norms go into the layer before them where nothing else reads its output; scales and signs
    of fold sketches, and biases, into one pass; linear weights lie in memory by rows or by columns,
    and images by pixels or by channels, whichever is faster on this machine and this batch. A small
    layer that takes longer than the dense layer it stands for becomes that dense layer, with its
    memory. Nothing in the copy is trained, and it is not for saving: keep the network that it was
    made of.

    Args:
        model: the network; not changed.
        batch: of the size that will be used; see `bozzetto.batches`.

    Raises:
        ValueError: if the copy gives something else than the model: a network that reads its own
            modules' weights, for instance.
    """
    batch = to(batch, device_of(model))
    made = copied(model).eval().requires_grad_(False)
    with torch.no_grad():
        expected = call(copied(made), batch)
        made = _quicker(made, batch)
        made = _replaced(made, Folded.takes, lambda layer: Folded(cast(Any, layer)))
        for norm, layer in _pairs(made, batch).items():
            absorb_(layer, *_affine(norm))
            made = _replaced(made, lambda m, n=norm: m is n, lambda _: nn.Identity())
        _lay_out_(made.requires_grad_(False), batch)
        made = _by_pixels(made, batch)
        got = call(made, batch)
    if not all(_close(a, b) for a, b in zip(tensors(got), tensors(expected), strict=True)):
        raise ValueError("the folded network gives other outputs: it cannot be folded")
    return made


def _close(got: Tensor, expected: Tensor) -> bool:
    """Whether outputs differ by rounding only; what is not finite must be the same in both."""
    if got.shape != expected.shape or not expected.is_floating_point():
        return got.shape == expected.shape
    finite = expected[expected.isfinite()].abs()
    worst = _CLOSE * max(1.0, float(finite.max()) if finite.numel() else 0.0)
    return bool(torch.isclose(got, expected, rtol=0.0, atol=worst, equal_nan=True).all())


def _replaced(
    model: nn.Module, found: Callable[[nn.Module], bool], by: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """The model with every module of a kind replaced, shared ones once."""
    new = {id(m): by(m) for m in model.modules() if found(m)}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if id(child) in new:
                parent._modules[name] = new[id(child)]
    return new.get(id(model), model)


def _quicker(model: nn.Module, batch: Batch) -> nn.Module:
    """The model with the dense layer in the place of every small one that takes longer."""
    twins = {m: twin for m in model.modules() if (twin := dense_twin(m)) is not None}
    inside = {id(part) for m in twins for part in m.modules() if part is not m}
    twins = {m: twin for m, twin in twins.items() if id(m) not in inside}
    known: dict[tuple[Any, ...], bool] = {}
    slow: dict[nn.Module, nn.Module] = {}
    for layer, x in _inputs(model, twins, batch).items():
        shapes = [(type(m), *(p.shape for p in m.parameters())) for m in layer.modules()]
        key = (str(layer), *shapes, x.shape, x.stride())
        if key not in known:
            small = Folded(cast(Any, layer)) if Folded.takes(layer) else layer
            known[key] = _faster({"small": small, "dense": twins[layer]}, x) == "dense"
        if known[key]:
            slow[layer] = twins[layer]
    return _replaced(model, lambda m: m in slow, lambda m: slow[m])


def _inputs(
    model: nn.Module, layers: Collection[nn.Module], batch: Batch
) -> dict[nn.Module, Tensor]:
    """What each of the layers gets, of those that are called with one tensor."""
    found: dict[nn.Module, Tensor] = {}

    def before(layer: nn.Module, args: tuple[Any, ...]) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor):
            found[layer] = args[0]

    hooks = [m.register_forward_pre_hook(before) for m in layers]
    try:
        call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found


class _Reads(TorchDispatchMode):
    """Counts how many operations read each tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()
        self.kept: list[Any] = []  # an id is one tensor's as long as that lives

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        self.count.update(id(t) for t in read)
        self.kept += read
        return func(*args, **(kwargs or {}))


def _pairs(model: nn.Module, batch: Batch) -> dict[nn.Module, nn.Module]:
    """{batch norm: the layer before it}, where folding one into the other changes nothing else."""
    made: dict[int, nn.Module] = {}
    pairs: dict[nn.Module, tuple[nn.Module, int]] = {}
    calls: Counter[nn.Module] = Counter()
    holders = Counter(id(p) for m in model.modules() for p in m._parameters.values())

    def after(module: nn.Module, _: Any, output: Any) -> None:
        calls[module] += 1
        made[id(output)] = module
        reads.kept.append(output)

    def before(norm: nn.Module, args: tuple[Any, ...]) -> None:
        calls[norm] += 1
        if args and id(args[0]) in made:
            pairs[norm] = made[id(args[0])], id(args[0])

    reads = _Reads()
    hooks = [m.register_forward_hook(after) for m in model.modules() if _own_weight(m)]
    hooks += [m.register_forward_pre_hook(before) for m in model.modules() if type(m) in NORMS]
    try:
        with reads:
            output = call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    returned = {id(t) for t in tensors(output)}
    return {
        norm: layer
        for norm, (layer, key) in pairs.items()
        if calls[norm] == calls[layer] == reads.count[key] == 1
        and key not in returned
        and cast(Any, norm).running_mean is not None
        and all(holders[id(p)] == 1 for p in layer.parameters())
    }


def _own_weight(layer: nn.Module) -> bool:
    """Whether it is a linear map whose weight is its own, not computed for every call."""
    own = isinstance(layer, Folded) or layer._parameters.get("weight") is not None
    return own and isinstance(layer, MAPS)


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A batch norm in evaluation as y = scale · x + shift, each (m,)."""
    n = cast(nn.BatchNorm2d, norm)
    mean, variance = cast(Tensor, n.running_mean), cast(Tensor, n.running_var)
    scale = (variance + n.eps).rsqrt() * (1.0 if n.weight is None else n.weight)
    shift = -mean * scale if n.bias is None else n.bias - mean * scale
    return scale, shift


def _lay_out_(model: nn.Module, batch: Batch) -> None:
    """Keep the weights of linear layers by columns where that is faster."""
    linear = [m for m in model.modules() if type(m) is nn.Linear and _own_weight(m)]
    known: dict[tuple[Any, ...], bool] = {}
    for layer, x in _inputs(model, linear, batch).items():
        columns = copy.deepcopy(cast(nn.Linear, layer))
        columns.weight = nn.Parameter(columns.weight.T.contiguous().T, requires_grad=False)
        shape = (columns.weight.shape, x.shape, x.stride())
        if shape not in known:
            known[shape] = _faster({"rows": layer, "columns": columns}, x) == "columns"
        if known[shape]:
            layer.weight = columns.weight


def _by_pixels(model: nn.Module, batch: Batch) -> nn.Module:
    """The model with its images' channels last in memory where that is faster."""
    if not any(isinstance(m, nn.Conv2d) for m in model.modules()):
        return model
    last = cast(Any, copied(model)).to(memory_format=torch.channels_last)
    runs = {"first": partial(call, model), "last": partial(call, last)}
    return last if _faster(runs, batch) == "last" else model


def _faster(runs: Mapping[str, Callable[[Any], Any]], x: Any) -> str:
    """The first, unless another is quicker by a twentieth: small differences are the clock's."""
    found = sample_in_turn({name: partial(run, x) for name, run in runs.items()}, _ROUNDS)
    times = {name: min(samples) for name, samples in found.items()}
    first, best = next(iter(times)), min(times, key=lambda name: times[name])
    return best if times[best] < _GAIN * times[first] else first


__all__ = ["for_inference"]
