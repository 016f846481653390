"""Does the small network learn like the target? Their tangent kernels on the same inputs."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bozzetto.batches import in_mode
from bozzetto.tangent.empirical import empirical_ntk
from bozzetto.tangent.empirical.network import by_rows

__all__ = ["KernelComparison", "alignment", "compare_kernels", "kernel"]


@dataclass(frozen=True)
class KernelComparison:
    """Two tangent kernels on the same N inputs, averaged over outputs.

    Attributes:
        alignment: centred kernel alignment, 1 for kernels equal up to a factor.
        scale: trace of the small network's kernel over the target's; at one learning rate the
            small one learns about that much faster.
        spectra: eigenvalues of K/N of the target and of the small network, decreasing, (2, N).
        dimensions: effective dimensions tr K (K + λN)⁻¹ of the two.
        ridge: λ, that of both.
        times: gradient-flow time × learning rate, in units of 1 / the target's top eigenvalue.
        curves: root mean square of what is left to learn at those times, relative to the start, of
            the signal given, under each kernel held fixed, (2, times).
    """

    alignment: float
    scale: float
    spectra: Tensor
    dimensions: tuple[float, float]
    ridge: float
    times: Tensor
    curves: Tensor

    @property
    def half_times(self) -> tuple[float, float]:
        """When each has learnt half of the signal; infinite if not within `times`."""
        found = []
        for curve in self.curves:
            below = (curve <= 0.5).nonzero()
            found.append(float(self.times[below[0, 0]]) if len(below) else float("inf"))
        return found[0], found[1]

    def rows(self) -> list[dict[str, object]]:
        """One row for each network."""
        return [
            {
                "network": name,
                "alignment": self.alignment if i else 1.0,
                "scale": self.scale if i else 1.0,
                "effective dimension": self.dimensions[i],
                "top eigenvalue": float(self.spectra[i, 0]),
                "half time": self.half_times[i],
            }
            for i, name in enumerate(("target", "small"))
        ]

    def figure(self, ax: Any) -> None:
        """What is left to learn against time, for both."""
        for name, curve in zip(("target", "small"), self.curves, strict=True):
            ax.semilogx(self.times, curve, label=name)
        ax.set_xlabel("learning rate × time (1 / top eigenvalue of the target)")
        ax.set_ylabel("left to learn (relative)")
        ax.set_ylim(0, 1.05)
        ax.set_title(f"kernel alignment {self.alignment:.3f}")
        ax.legend()


def kernel(
    model: nn.Module,
    small: nn.Module,
    x: Tensor,
    *,
    signal: Tensor | None = None,
    ridge: float = 1e-3,
    block: int = 64,
) -> KernelComparison:
    """Compare the tangent kernels of a network and its small version at inputs x.

    Both are taken in evaluation mode, over the parameters that require gradients, and left as they
    were. `signal` (N,) or (N, C) is what is to be learnt; by default the target's own outputs.

    Args:
        model: the target.
        small: the smaller network.
        x: inputs (N, ...), as the networks take them.
        signal: labels or outputs.
        ridge: λ of the effective dimension, as a fraction of the target's mean eigenvalue.
        block: inputs whose gradients are held at once.

    Raises:
        ValueError: as `compare_kernels`.
    """
    with in_mode(model, training=False), in_mode(small, training=False):
        with torch.no_grad():
            learnt = by_rows(model(x)) if signal is None else signal
        kernels = [empirical_ntk(m, x, block=block) for m in (model, small)]
    return compare_kernels(kernels[0], kernels[1], learnt, ridge=ridge)


def compare_kernels(
    target: Tensor, small: Tensor, signal: Tensor, *, ridge: float = 1e-3
) -> KernelComparison:
    """The comparison for two kernels (N, N) that are there already.

    Raises:
        ValueError: for fewer than two inputs, a signal of another length, one that is the same for
            all inputs (nothing is left to learn but a constant), or a ridge ≤ 0.
    """
    target, small, signal = (t.detach().cpu().double() for t in (target, small, signal))
    n = len(target)
    if n < 2 or len(signal) != n:
        raise ValueError(f"needs at least 2 inputs and as many signals; got {n} and {len(signal)}")
    if ridge <= 0:
        raise ValueError(f"the ridge must be positive; got {ridge}")
    pairs = [torch.linalg.eigh(k / n) for k in (target, small)]
    spectra = torch.stack([values.flip(0).clamp(min=0) for values, _ in pairs])
    level = ridge * float(spectra[0].mean())
    signal = signal.reshape(n, -1)
    signal = signal - signal.mean(0)
    if not signal.any():
        raise ValueError("the signal needs to differ between inputs; it is constant")
    times = torch.logspace(-1, 4, 101, dtype=torch.float64)
    dimensions = (spectra / (spectra + level)).sum(1).tolist()
    curves = [_curve(values, at, signal, times / spectra[0, 0]) for values, at in pairs]
    return KernelComparison(
        alignment(target, small),
        float(small.trace() / target.trace()),
        spectra,
        (dimensions[0], dimensions[1]),
        level,
        times,
        torch.stack(curves),
    )


def alignment(a: Tensor, b: Tensor) -> float:
    """⟨HaH, HbH⟩ / (‖HaH‖ ‖HbH‖), H = I − 11ᵀ/N (Cortes, Mohri and Rostamizadeh 2012)."""
    a, b = (k - k.mean(0) - k.mean(1, keepdim=True) + k.mean() for k in (a, b))
    return float((a * b).sum() / (a.norm() * b.norm()))


def _curve(values: Tensor, vectors: Tensor, signal: Tensor, times: Tensor) -> Tensor:
    """‖exp(−K t / N) y‖ / ‖y‖ at all times."""
    weights = (vectors.T @ signal).square().sum(1)
    left = (-2 * values.clamp(min=0) * times[:, None]).exp() @ weights
    return (left / weights.sum()).sqrt()
