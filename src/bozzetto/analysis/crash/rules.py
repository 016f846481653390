"""What each layer type is to a bound: an affine map, an activation, a maximum or a join."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from bozzetto.analysis.crash.activations import Activation, NoSoundBound, activation
from bozzetto.analysis.crash.windows import windows

Function = Callable[[Tensor], Tensor]
_WEIGHT_HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)


def schur_norm(power: Callable[[Tensor, int], Tensor], like: Tensor) -> float:
    """√(‖A‖₁ ‖A‖_∞) ≥ ‖A‖₂ (Schur's test), from the action of |A| on one input `like` (1, *s)."""
    with torch.enable_grad():
        ones = torch.ones_like(like).requires_grad_()
        rows = power(ones, 1)
        (columns,) = torch.autograd.grad(rows.sum(), ones)
    return math.sqrt(rows.max().item() * columns.max().item())


@dataclass(frozen=True)
class Affine:
    """y = A x + c for (b, *in) -> (b, *out).

    `power(x, q)` applies |A|^q elementwise; q = 2 only where `squares` says that every pair of an
    input and an output is joined by one weight. `single`: no input reaches two outputs and no
    output reads two inputs, so independence of elements survives.
    """

    run: Function
    power: Callable[[Tensor, int], Tensor]
    single: bool = False
    squares: bool = True
    spectral: Callable[[Tensor], float] | None = None
    largest: float | None = None  # max |A_ij|, where power(x, 0) counts the entries of a row

    def linear(self, x: Tensor) -> Tensor:
        """A x, without the constant."""
        return self.run(x) - self.run(torch.zeros_like(x[:1]))

    def norm(self, like: Tensor) -> float:
        """An upper bound on ‖A‖₂ for inputs shaped as `like` (1, *in)."""
        schur = schur_norm(self.power, like)
        return schur if self.spectral is None else min(schur, self.spectral(like))


@dataclass(frozen=True)
class Maximum:
    """Max pooling: `windows` gives every window's entries, (b, *in) -> (b, entries, *out)."""

    run: Function
    windows: Function


@dataclass(frozen=True)
class Mixing:
    """y = f(x) with |Δy_i| ≤ own·|Δx_i| + other·Σ_{j≠i}|Δx_j| along `dim`, and |Δy_i| ≤ cap."""

    run: Function
    dim: int
    own: float
    other: float
    cap: float


@dataclass(frozen=True)
class Combine:
    """y = Σ sign·x: sums and differences of branches."""

    signs: tuple[float, ...]


@dataclass(frozen=True)
class Concat:
    """Branches side by side along a dimension that is not the batch."""

    dim: int


SingleRule = Affine | Activation | Maximum | Mixing
Rule = SingleRule | Combine | Concat


def rearrange(run: Function) -> Affine:
    """A map that only moves elements (or pads and drops them)."""
    return Affine(run, lambda x, _: run(x), single=True)


@singledispatch
def rule(module: nn.Module) -> Rule:
    """The rule of a leaf module; register your own type here, or an activation in `activation`.

    Raises:
        NoSoundBound: for a layer without a sound bound.
    """
    if _is_along_axis(module):
        return _along_axis(module)
    return activation(module)


def has_rule(module: nn.Module) -> bool:
    """Whether `rule` holds for what a module computes.

    Not for a subclass with its own forward, nor with hooks but those that make the weight.
    """
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    known = getattr(registered(module), "forward", NotImplemented)
    same = _is_along_axis(module) or getattr(module.forward, "__func__", None) is known
    return same and all(isinstance(hook, _WEIGHT_HOOKS) for hook in hooks)


def registered(module: nn.Module) -> type | None:
    """The registered type that a module is an instance of."""
    known = rule.registry.keys() | activation.registry.keys()
    return next((k for k in type(module).__mro__ if k in known and k is not object), None)


def _is_along_axis(module: nn.Module) -> bool:
    return isinstance(getattr(module, "sketch", None), nn.Module) and hasattr(module, "dim")


def _along_axis(module: Any) -> Affine:
    """A linear module that acts on one axis `module.dim`: its matrix is its image of a basis."""

    def matrix(x: Tensor) -> Tensor:
        size = x.shape[module.dim]
        shape = [size, *[1] * x.ndim]
        shape[module.dim] = size
        basis = torch.eye(size, dtype=x.dtype, device=x.device).reshape(shape)
        return module(basis).reshape(size, -1)  # (in, out)

    def power(x: Tensor, q: int) -> Tensor:
        mixed = x.movedim(module.dim, -1) @ matrix(x).abs() ** q
        return mixed.movedim(-1, module.dim)

    def spectral(like: Tensor) -> float:
        return _largest_singular(matrix(like))

    return Affine(module, power, spectral=spectral)


def _largest_singular(matrix: Tensor) -> float:
    """‖W‖₂, rounded up by more than the error of a float64 decomposition."""
    return torch.linalg.svdvals(matrix).max().item() * (1 + 1e-9)


def _with_weight(module: nn.Module, weight: Tensor) -> nn.Module:
    """A plain module with another weight and no bias; parametrizations and hooks stay behind."""
    kind: type[nn.Module] = next(k for k in type(module).__mro__ if k in rule.registry)
    changed = nn.Module.__new__(kind)
    kept = {k: v for k, v in vars(module).items() if k != "weight"}
    parameters = {"weight": nn.Parameter(weight, requires_grad=False), "bias": None}
    bare = {k: {} for k in ("_buffers", "_modules", "_forward_pre_hooks", "_forward_hooks")}
    vars(changed).update(kept, _parameters=parameters, **bare)
    return changed


def _weighted(module: Any, **claims: Any) -> Affine:
    def power(x: Tensor, q: int) -> Tensor:
        return _with_weight(module, module.weight.abs() ** q)(x)

    return Affine(module, power, largest=module.weight.abs().max().item(), **claims)


@rule.register
def _(module: nn.Linear) -> Affine:
    return _weighted(module, spectral=lambda _: _largest_singular(module.weight))


def _torus_norm(module: Any, like: Tensor) -> float:
    """‖conv‖₂ ≤ its norm on a torus with room for the kernel: a maximum over frequencies.

    Zero padding embeds the input in the torus, strides drop outputs: neither raises the norm.
    """
    weight = module.weight.unflatten(0, (module.groups, -1))  # (g, m, n, *taps)
    if module.transposed:  # the adjoint of a convolution has the same norm; padding drops outputs
        sizes = [(s - 1) * r + 1 for s, r in zip(like.shape[2:], module.stride, strict=True)]
    else:
        sizes = like.shape[2:]
    reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    spread = weight.new_zeros(*weight.shape[:3], *[r + 1 for r in reach])
    spread[(..., *[slice(None, None, d) for d in module.dilation])] = weight
    torus = [s + r for s, r in zip(sizes, reach, strict=True)]
    taps = tuple(range(3, weight.ndim))
    symbol = torch.fft.rfftn(spread, s=torus, dim=taps)  # (g, m, n, *frequencies)
    return _largest_singular(symbol.movedim((1, 2), (-2, -1)))


@rule.register(nn.Conv1d)
@rule.register(nn.Conv2d)
@rule.register(nn.Conv3d)
@rule.register(nn.ConvTranspose1d)
@rule.register(nn.ConvTranspose2d)
@rule.register(nn.ConvTranspose3d)
def _(module: Any) -> Affine:
    if module.padding_mode != "zeros":  # a border repeats inputs: no squares, no torus
        return _weighted(module, squares=False)
    return _weighted(module, spectral=lambda like: _torus_norm(module, like))


@rule.register(nn.BatchNorm1d)
@rule.register(nn.BatchNorm2d)
@rule.register(nn.BatchNorm3d)
def _(module: Any) -> Affine:
    if module.running_var is None:
        return cast(Affine, activation(module))  # depends on the batch: no sound bound
    scale = (module.running_var + module.eps).rsqrt()
    scale = scale if module.weight is None else scale * module.weight

    def power(x: Tensor, q: int) -> Tensor:
        return x * (scale.abs() ** q).reshape(-1, *[1] * (x.ndim - 2))

    return Affine(module, power, single=True, spectral=lambda _: scale.abs().max().item())


@rule.register(nn.Identity)
@rule.register(nn.Dropout)
@rule.register(nn.Dropout1d)
@rule.register(nn.Dropout2d)
@rule.register(nn.Dropout3d)
@rule.register(nn.AlphaDropout)
@rule.register(nn.Flatten)
@rule.register(nn.Unflatten)
@rule.register(nn.PixelShuffle)
@rule.register(nn.PixelUnshuffle)
@rule.register(nn.ChannelShuffle)
@rule.register(nn.ZeroPad1d)
@rule.register(nn.ZeroPad2d)
@rule.register(nn.ZeroPad3d)
def _(module: nn.Module) -> Affine:
    return rearrange(module)


@rule.register(nn.AvgPool1d)
@rule.register(nn.AvgPool2d)
@rule.register(nn.AvgPool3d)
@rule.register(nn.AdaptiveAvgPool1d)
@rule.register(nn.AdaptiveAvgPool2d)
@rule.register(nn.AdaptiveAvgPool3d)
def _(module: nn.Module) -> Affine:
    """Means have positive weights; their squares are counted as if nothing were independent."""
    return Affine(module, lambda x, _: module(x), squares=False)


@rule.register(nn.MaxPool1d)
@rule.register(nn.MaxPool2d)
@rule.register(nn.MaxPool3d)
def _(module: Any) -> Maximum:
    return Maximum(module, lambda x: windows(module, x))


@rule.register
def _(module: nn.Softmax) -> Mixing:
    """∂_j s_i = s_i (1_{i=j} − s_j) lies within ±¼."""
    return Mixing(module, _axis(module), 0.25, 0.25, 1.0)


@rule.register
def _(module: nn.LogSoftmax) -> Mixing:
    """∂_j log s_i = 1_{i=j} − s_j lies within ±1."""
    return Mixing(module, _axis(module), 1.0, 1.0, math.inf)


def _axis(module: nn.Softmax | nn.LogSoftmax) -> int:
    if module.dim is None:  # torch then chooses by the number of axes
        raise NoSoundBound(f"no sound bound for {module!r} without its dim")
    return module.dim
