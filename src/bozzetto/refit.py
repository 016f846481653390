"""`refit_`: every changed layer fitted again, in running order, on the inputs that it gets."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from bozzetto.batches import call
from bozzetto.expand import expand
from bozzetto.maps import LinearMap, linear_map
from bozzetto.methods import Objective, make_method
from bozzetto.methods.method import INPUT_DAMPING
from bozzetto.moments import WIDE, Products, damped
from bozzetto.nn.parts import write_weight_
from bozzetto.ops import Lookup, Op
from bozzetto.plan import Plan
from bozzetto.replay import Replay
from bozzetto.sites import find_sites, users
from bozzetto.stats import Stats, chunks

BatchNorm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def refit_(
    small: nn.Module,
    model: nn.Module,
    plan: Plan,
    stats: Mapping[str, Stats],
    batches: Sequence[Any],
) -> nn.Module:
    """Fit the layers of a small network one after the other to the target's own outputs.

    A layer's inputs differ from the target's once the layers before it have changed. With x the
    target's patches, x̃ the small network's and W the target's weight, the layer approximates the
    least squares map W E[x x̃ᵀ] E[x̃ x̃ᵀ]⁻¹ in the metric of E[x̃ x̃ᵀ]; a dense layer behind a changed
    one becomes that map; batch norms there get their running statistics moved by what their inputs
    moved.

    Args:
        small: from `rebuild` with the same stats; changed in place and returned.
        model: the target; not changed.
        plan: of the small network.
        stats: of the target, for the weight of output errors.
        batches: the calibration batches, passed over once a layer.
    """
    target = expand(model, weights="shared").eval()
    flags = [(m, m.training) for m in small.modules()]
    order = _order(target, plan, batches[0])
    small.eval()
    try:
        runs = [Replay(net, batches, order) for net in (target, small)]
        with torch.no_grad():
            for done, path in enumerate(order):
                norm = isinstance(target.get_submodule(path), BatchNorm)
                known = None if norm else stats.get(path)
                if known is None and not norm:  # it is called in a way that stats do not tell
                    continue
                calls = 1 if known is None else len(known.shapes)
                pairs = _pairs([run.inputs(path, calls, order[:done]) for run in runs])
                if known is None:
                    _move_statistics_(small.get_submodule(path), pairs)
                else:
                    _refit_layer_(small, target, path, plan, known, pairs)
    finally:
        for module, flag in flags:
            module.training = flag
    return small


def _order(target: nn.Module, plan: Plan, batch: Any) -> list[str]:
    """Linear layers and batch norms, as they run, from the first changed layer on.

    Look-ups see the same indices in both networks, layers of tied weights serve two places and very
    wide ones have no whole moment: they keep their first fit.
    """
    paths: list[str] = []

    def note(path: str) -> Callable[..., None]:
        def add(*_: Any) -> None:
            if path not in paths:
                paths.append(path)

        return add

    sites, _ = find_sites(target)
    linear = {p for p, s in sites.items() if not users(s) and not _first_fit(s.map)}
    handles = []
    try:
        for path, module in target.named_modules():
            norm = isinstance(module, BatchNorm) and module.running_mean is not None
            if path in linear or norm:
                handles.append(module.register_forward_pre_hook(note(path)))
        with torch.no_grad():
            call(target, batch)
    finally:
        for handle in handles:
            handle.remove()
    first = next((i for i, path in enumerate(paths) if path in plan.choices), len(paths))
    return paths[first:]


def _first_fit(m: LinearMap) -> bool:
    return isinstance(m.op, Lookup) or m.block[1] > WIDE


Pairs = Iterator[tuple[Tensor, Tensor]]


def _pairs(runs: Sequence[Iterator[list[Tensor]]]) -> Pairs:
    """Inputs of the same call, (of the target, of the small network)."""
    for theirs, ours in zip(*runs, strict=True):
        yield from zip(theirs, ours, strict=True)


def _refit_layer_(
    small: nn.Module, target: nn.Module, path: str, plan: Plan, known: Stats, pairs: Pairs
) -> None:
    m = linear_map(target.get_submodule(path))
    moment, cross, ours, theirs = _joint_moments(m.op, pairs)
    raw = moment
    if m.bias is not None:
        moment = torch.addcmul(moment, ours.unsqueeze(-1), ours.unsqueeze(-2), value=-1)
        cross.addcmul_(theirs.unsqueeze(-1), ours.unsqueeze(-2), value=-1)
    steady = damped(moment, INPUT_DAMPING, raw)
    # The damping stands for inputs that both networks see alike, so it is added to both moments.
    cross.add_(steady).sub_(moment)
    best = torch.linalg.solve(steady, (m.matrix() @ cross).mT).mT
    del raw, cross, steady  # as large as moments: not held while the layer is fitted
    layer, applied = small.get_submodule(path), best
    bias = cast(nn.Parameter | None, getattr(layer, "bias", None))
    if path in plan.choices:
        choice = plan.choices[path]
        method = make_method(choice.method, choice.options)
        goal = LinearMap(best.reshape(m.weight.shape).to(m.weight), m.bias, m.op)
        method.fit_(layer, Objective(goal, replace(known, moment=moment, mean=None)))
        applied, bias = method.weight(layer, m), method.bias(layer)
    else:
        write_weight_(layer, best)
    if m.bias is not None and bias is not None:
        shift = m.matrix() @ theirs.unsqueeze(-1) - applied @ ours.unsqueeze(-1)
        bias.copy_(m.bias.detach().double().cpu() + shift.flatten())


def _joint_moments(op: Op, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """E[x̃ x̃ᵀ], E[x x̃ᵀ], E[x̃] and E[x] over all positions; float64 on the CPU."""
    own, joint = Products(), Products()
    for theirs, ours in pairs:
        for x, y in zip(chunks(theirs, op), chunks(ours, op), strict=True):
            x, y = op.patches(x), op.patches(y)
            own.add(y, y)
            joint.add(x, y)
    (moment, ours, _), (cross, theirs, _) = own.means(), joint.means()
    return moment, cross, ours, theirs


def _move_statistics_(norm: Any, pairs: Pairs) -> None:
    """Move a batch norm's running mean and variance by the change of its inputs' own."""
    sums, count = torch.zeros(0), 0
    for theirs, ours in pairs:
        rows = [x.movedim(1, -1).flatten(0, -2).double() for x in (ours, theirs)]
        part = torch.stack([torch.stack([r.sum(0), r.square().sum(0)]) for r in rows])
        sums = part if not count else sums + part
        count += len(rows[0])
    (mean, square), (old_mean, old_square) = sums / count
    scale = (square - mean**2) / (old_square - old_mean**2).clamp_min(1e-30)
    moved = torch.where(old_square - old_mean**2 > 1e-12, scale, 1.0)
    norm.running_mean.add_((mean - old_mean).to(norm.running_mean))
    norm.running_var.mul_(moved.to(norm.running_var))
