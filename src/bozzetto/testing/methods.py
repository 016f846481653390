"""The contract of a method: what it says of a layer holds for the layer that it delivers."""

import copy
from dataclasses import replace

import torch
from torch import nn

from bozzetto.linalg import random_uniform, seeded
from bozzetto.maps import LinearMap
from bozzetto.methods import Method, Objective
from bozzetto.methods.method import fresh_, fresh_bias_, fresh_variance
from bozzetto.ops import Lookup
from bozzetto.prices import count_bytes, count_params
from bozzetto.stats import Stats
from bozzetto.testing.maps import draw_input
from bozzetto.testing.requiring import normal, require, require_mean, same

_BUILDS = 200
_ROUNDING = 1e-7  # of the objective at a dropped layer
CALIBRATIONS = ("ordinary", "rank-deficient", "constant", "dead", "scaled")


def check_method(method: Method, m: LinearMap) -> None:
    """The contract of a method, with its options set, on a map.

    Checked: sizes ascend, with ever more values, fewer than the dense weight has; `most` is the
    largest within its share. At the smallest, a middle and the largest size: the layer has as
    many values as promised, on the meta device and in bytes too; one seed gives one layer;
    `weight` is what forward applies; a state dict gives the layer back. Fitted on ordinary
    calibration and on moments that are singular, constant, zero on half of the channels or
    spread over twelve orders of magnitude: all values are finite, the objective is what `errors`
    said or less, and little less on ordinary ones; `forms` are smaller than the dense layer and
    tell their error; the bias absorbs the mean. A weight of the method's own making comes back
    exactly where `recovers` says so. Fresh layers have the outputs' variance of dense ones drawn at
    the scale of the map's own weight, to five standard errors of 200 builds.

    Raises:
        AssertionError: naming the first clause that is broken.
    """
    exact = LinearMap(m.weight.double(), None if m.bias is None else m.bias.double(), m.op)
    sizes = _check_sizes(method, exact)
    if not sizes:
        return
    some = sorted({sizes[0], sizes[len(sizes) // 2], sizes[-1]})
    for size in some:
        _check_build(method, exact, size)
        if method.recovers:
            _check_recovery(method, exact, size)
    for kind in CALIBRATIONS:
        _check_fits(method, Objective(exact, calibration(exact, kind)), some, kind)
    _check_fits(method, Objective(exact), some, "no")
    _check_fresh_variance(method, exact, some[len(some) // 2])


def calibration(m: LinearMap, kind: str) -> Stats:
    """Moments of drawn inputs of a kind, one of CALIBRATIONS."""
    g, (rows, d) = m.op.groups, m.block
    slope = normal(g, 40, rows, seed=3) @ normal(g, rows, rows, seed=4)
    gradient = slope.mT @ slope / 40
    if isinstance(m.op, Lookup):
        share = random_uniform(5, d)
        share[: d // 2] *= {"ordinary": 1.0, "scaled": 1e-12}.get(kind, 0.0)
        return Stats(share / share.sum(), None, gradient, 100, ())
    count = max(2, d // 2) if kind == "rank-deficient" else 3 * d
    decay = 1 / torch.arange(1, d + 1).double()
    x = 0.5 + normal(g, count, d, seed=6) @ (decay.unsqueeze(1) * normal(g, d, d, seed=7))
    n = m.weight.shape[1]
    channel = torch.arange(d) // (d // n)
    if kind == "constant":
        x = x[:, :1].expand_as(x)
    elif kind == "dead":
        x = x * (channel % 2)
    elif kind == "scaled":
        x = x * 10 ** (12 * random_uniform(8, n) - 6)[channel]
    return Stats(x.mT @ x / count, x.mean(1), gradient, count, ())


def _built(method: Method, m: LinearMap, size: int, drawn: int = 1, seed: int = 0) -> nn.Module:
    with seeded(drawn, m.weight.device):
        return method.build(m, size, seed)


def _check_sizes(method: Method, m: LinearMap) -> list[int]:
    sizes, dense = method.sizes(m), m.weight.numel()
    values = [method.values(m, size) for size in sizes]
    require(sizes == sorted(set(sizes)), f"sizes must ascend; got {sizes}")
    require(values == sorted(values), f"values must not fall with size; got {values}")
    require(all(v < dense for v in values), f"sizes must save values of {dense}; got {values}")
    for keep in (0.2, 0.5):
        most = method.most(m, keep)
        kept, more = method.values(m, most) if most else 0, method.values(m, most + 1)
        require(kept <= keep * dense, f"most({keep}) = {most} keeps more")
        larger = kept < more <= keep * dense  # one of as many values would be of no use
        require(not larger, f"most({keep}) = {most} is not the largest")
    return sizes


def _check_build(method: Method, m: LinearMap, size: int) -> None:
    what = f"{method} at size {size}"
    layer, again = _built(method, m, size), _built(method, m, size)
    bias = 0 if m.bias is None else m.bias.numel()
    count = count_params(layer)
    promised = method.values(m, size) + bias
    require(count == promised, f"{what} must have {promised} values; it has {count}")
    _check_weight(method, m, layer, f"fresh {what}")
    for name, value in layer.state_dict().items():
        same(again.state_dict()[name], value, f"one seed must give one {name} of {what}")
    other = _built(method, m, size, drawn=2)
    other.load_state_dict(layer.state_dict())
    x = draw_input(m)
    same(other(x), layer(x), f"a state dict must give {what} back")
    same(copy.deepcopy(layer)(x), layer(x), f"a deepcopy of {what} must work the same")
    with torch.device("meta"):
        bias = None if m.bias is None else m.bias.to("meta")
        empty = method.build(replace(m, weight=m.weight.to("meta"), bias=bias), size, 0)
    require(count_bytes(empty) == count_bytes(layer), f"{what} must count the same on meta")


def _check_weight(method: Method, m: LinearMap, layer: nn.Module, what: str) -> None:
    """Forward is the dense module with the weight and the bias that the method tells."""
    weight, x = method.weight(layer, m).reshape(m.weight.shape), draw_input(m)
    applied = LinearMap(weight, method.bias(layer), m.op).module()
    same(layer(x), applied(x), f"{what} must apply the weight that it tells", 1e-8)


def _check_recovery(method: Method, m: LinearMap, size: int) -> None:
    layer = _built(method, m, size)
    own = replace(m, weight=method.weight(layer, m).reshape(m.weight.shape))
    objective = Objective(own, calibration(own, "ordinary"))
    method.fit_(layer, objective)
    left = objective.error(objective.w - method.weight(layer, own))
    require(
        left <= _ROUNDING * objective.energy,
        f"{method} must recover a weight of its own making at size {size}; it leaves "
        f"{left / objective.energy:.2g} of the objective",
    )


def _check_fits(method: Method, objective: Objective, sizes: list[int], kind: str) -> None:
    m, room = objective.map, _ROUNDING * objective.energy
    predicted = method.errors(objective, sizes)
    _check_forms(method, objective)
    for size, error in zip(sizes, predicted, strict=True):
        what = f"{method} at size {size} with {kind} calibration"
        layer = _built(method, m, size)
        method.fit_(layer, objective)
        tensors = [*layer.parameters(), *layer.buffers()]
        require(all(bool(t.isfinite().all()) for t in tensors), f"{what} must be finite")
        weight = method.weight(layer, m)
        reached = objective.error(objective.w - weight)
        told = (
            f"{what}: errors told {error:.6g} of {objective.energy:.6g}, the fit has {reached:.6g}"
        )
        require(reached <= error * (1 + _ROUNDING) + room, told)
        require(reached <= objective.energy + room, f"{told}: dropping it would be better")
        if kind in ("ordinary", "no"):
            require(error <= 2 * reached + 0.01 * objective.energy, told)
        _check_mean(method, objective, layer, what)


def _check_forms(method: Method, objective: Objective) -> None:
    """Forms are smaller than the dense layer, and their errors those that the method tells."""
    forms, m = method.forms(objective), objective.map
    require(bool(forms), f"{method} has sizes but no forms")
    dense = m.weight.numel()
    values = [form.method.values(m, form.size) for form in forms]
    require(max(values) < dense, f"forms must hold fewer than {dense} values; got {values}")
    last = forms[-1]
    (told,) = last.method.errors(objective, [last.size])
    require(abs(told - last.error) <= _ROUNDING * objective.energy, f"{last} has error {told}")


def _check_mean(method: Method, objective: Objective, layer: nn.Module, what: str) -> None:
    """The layer's mean output on the calibration data is the target's."""
    bias, stats, m = method.bias(layer), objective.stats, objective.map
    if bias is None or m.bias is None or stats is None or stats.mean is None:
        return
    mean = stats.mean.unsqueeze(-1)
    got = (method.weight(layer, m) @ mean).flatten() + bias
    want = (objective.w @ mean).flatten() + m.bias
    same(got.detach(), want.detach(), f"{what} must keep the mean of the output", 1e-6)


def _check_fresh_variance(method: Method, m: LinearMap, size: int) -> None:
    """The mean square of fresh outputs, over builds, is that of dense layers of the same scale."""
    x, bias = draw_input(m), m.bias is not None
    differences = []
    for seed in range(_BUILDS):
        small = _built(method, m, size, drawn=seed, seed=seed)
        with seeded(seed + _BUILDS, m.weight.device):
            dense = m.op.layer(m.inputs, m.outputs, bias=bias, like=m.weight)
            fresh_(dense, fresh_variance(m))
            fresh_bias_(method.bias(dense) if bias else None, m)
            if isinstance(dense, nn.Embedding) and dense.padding_idx is not None:
                nn.init.zeros_(dense.weight[dense.padding_idx])
        ours, theirs = (layer(x).detach().square().mean() for layer in (small, dense))
        differences.append(ours - theirs)
    what = f"the dense layer's output variance of a fresh {method} at size {size}"
    require_mean(torch.stack(differences), 0.0, what)


__all__ = ["CALIBRATIONS", "calibration", "check_method"]
