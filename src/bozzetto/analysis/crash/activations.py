"""Activations and the constants that bounds need: Lipschitz, supremum, curvature, kinks."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NoSoundBound(TypeError):
    """A layer for which no sound bound is known here; the message names it."""


@dataclass(frozen=True)
class Activation:
    """An elementwise function φ and what is proved about it.

    `curvature` bounds the Lipschitz constant of φ'; `kinks` are the only points where a piecewise
    linear φ bends. With neither, a bound falls back on |φ(z+δ) − φ(z) − sδ| ≤ 2K|δ|.
    """

    function: Callable[[Tensor], Tensor]
    lipschitz: float  # K ≥ |φ'|
    supremum: float = math.inf  # C ≥ |φ|
    curvature: float | None = None
    kinks: tuple[float, ...] | None = None
    bend: float = 0.0  # largest change of slope of a piecewise linear φ
    monotone: bool = True
    convex: bool = False

    def slope(self, z: Tensor) -> Tensor:
        """φ'(z), elementwise (one of the one-sided slopes at a kink)."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.function(z).sum(), z)
        return slope

    def distance(self, z: Tensor) -> Tensor:
        """How far z is from the nearest kink; zero where kinks are unknown, elementwise."""
        if self.kinks is None:
            return torch.zeros_like(z)
        return torch.stack([(z - kink).abs() for kink in self.kinks]).amin(0)


@singledispatch
def activation(module: nn.Module) -> Activation:
    """The constants of an activation module; register your own Lipschitz activation here.

    Raises:
        NoSoundBound: for a module nobody registered.
    """
    raise NoSoundBound(f"no sound bound for {type(module).__name__}: {module!r}")


# Suprema of |φ'| and |φ''|, rounded up; tests/analysis/test_crash_layers.py scans them.
_SMOOTH: dict[type[nn.Module], tuple[float, float, float, bool]] = {
    nn.Tanh: (1.0, 1.0, 4 / (3 * math.sqrt(3)), True),
    nn.Sigmoid: (0.25, 1.0, 1 / (6 * math.sqrt(3)), True),
    nn.LogSigmoid: (1.0, math.inf, 0.25, True),
    nn.Softsign: (1.0, 1.0, 2.0, True),
    nn.GELU: (1.1291, math.inf, 0.8, False),
    nn.SiLU: (1.0999, math.inf, 0.5, False),
    nn.Mish: (1.0885, math.inf, 0.65, False),
    nn.Tanhshrink: (1.0, math.inf, 4 / (3 * math.sqrt(3)), True),
}


def _smooth(module: nn.Module) -> Activation:
    kind = next(kind for kind in type(module).__mro__ if kind in _SMOOTH)
    slope, supremum, curvature, monotone = _SMOOTH[kind]
    function = module if isinstance(module, nn.GELU) else kind()  # never in place
    return Activation(function, slope, supremum, curvature, monotone=monotone)


for _type in _SMOOTH:
    activation.register(_type)(_smooth)


@activation.register
def _(module: nn.ReLU) -> Activation:
    return Activation(F.relu, 1.0, kinks=(0.0,), bend=1.0, convex=True)


@activation.register
def _(module: nn.ReLU6) -> Activation:
    return Activation(F.relu6, 1.0, 6.0, kinks=(0.0, 6.0), bend=1.0)


@activation.register
def _(module: nn.Hardtanh) -> Activation:
    low, high = module.min_val, module.max_val
    clip = torch.nn.Hardtanh(low, high)
    return Activation(clip, 1.0, max(abs(low), abs(high)), kinks=(low, high), bend=1.0)


@activation.register
def _(module: nn.LeakyReLU) -> Activation:
    a = module.negative_slope
    leaky = nn.LeakyReLU(a)
    slope, bend = max(1.0, abs(a)), abs(1.0 - a)
    return Activation(leaky, slope, kinks=(0.0,), bend=bend, monotone=a >= 0, convex=a <= 1)


@activation.register
def _(module: nn.Hardsigmoid) -> Activation:
    return Activation(F.hardsigmoid, 1 / 6, 1.0, kinks=(-3.0, 3.0), bend=1 / 6)


@activation.register
def _(module: nn.Softshrink) -> Activation:
    shrink = nn.Softshrink(module.lambd)
    return Activation(shrink, 1.0, kinks=(-module.lambd, module.lambd), bend=1.0)


@activation.register
def _(module: nn.Hardswish) -> Activation:
    return Activation(F.hardswish, 1.5, monotone=False)


@activation.register
def _(module: nn.ELU) -> Activation:
    slope = max(1.0, module.alpha)
    return Activation(nn.ELU(module.alpha), slope, curvature=1.0 if module.alpha == 1 else None)


@activation.register
def _(module: nn.CELU) -> Activation:
    return Activation(nn.CELU(module.alpha), 1.0, curvature=1.0 / module.alpha)


@activation.register
def _(module: nn.SELU) -> Activation:
    return Activation(F.selu, 1.7581)


@activation.register
def _(module: nn.Softplus) -> Activation:
    if module.threshold < 20:
        raise NoSoundBound(f"no sound bound for {module!r}: it jumps at its threshold")
    return Activation(nn.Softplus(module.beta, module.threshold), 1.0, curvature=module.beta / 4)


# What a functional call in a traced graph means, as a module (by torch's own name).
MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu_": nn.ReLU,
    "relu6": nn.ReLU6,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "elu": nn.ELU,
    "celu": nn.CELU,
    "selu": nn.SELU,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "leaky_relu": nn.LeakyReLU,
    "hardtanh": nn.Hardtanh,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "logsigmoid": nn.LogSigmoid,
    "tanhshrink": nn.Tanhshrink,
    "softshrink": nn.Softshrink,
}
