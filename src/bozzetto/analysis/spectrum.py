"""Spectra: how many directions of each layer matter, of its weight, its inputs and what passes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bozzetto.expand import expand
from bozzetto.methods import Objective
from bozzetto.moments import SketchedMoment
from bozzetto.sites import find_sites
from bozzetto.stats import Stats

__all__ = ["LayerSpectrum", "Spectra", "effective_rank", "spectra", "stable_rank"]

WIDEST = 2_048  # of a moment whose eigenvalues are taken
_CLOSE = 0.1  # relative error


@dataclass(frozen=True)
class LayerSpectrum:
    """One layer W: (m, d), its groups taken together.

    Attributes:
        layer: path in the expanded model.
        shape: (m, d) of a group.
        weight: singular values of W, decreasing, (p,).
        passed: those of Kᵀ W L, with L Lᵀ the second moment of the inputs (centred where there is
            a bias) and K Kᵀ that of the output's gradient: the squares behind the first r sum to
            the error of the best rank r, as plans weigh it.
        inputs: eigenvalues of the inputs' second moment, decreasing, (d,); None for d > 2,048.
    """

    layer: str
    shape: tuple[int, int]
    weight: Tensor
    passed: Tensor
    inputs: Tensor | None

    def rank_within(self, error: float) -> int:
        """The smallest rank whose best approximation has at most this relative error, as passed."""
        return int((truncation_error(self.passed) > error).sum())

    def row(self) -> dict[str, object]:
        """The layer's numbers."""
        inputs = None if self.inputs is None else effective_rank(self.inputs)
        return {
            "layer": self.layer,
            "shape": "×".join(map(str, self.shape)),
            "rank": len(self.weight),
            "stable_rank": stable_rank(self.weight),
            "effective_rank": effective_rank(self.weight),
            "effective_rank_passed": effective_rank(self.passed),
            "rank_within_10_%": self.rank_within(_CLOSE),
            "effective_rank_of_inputs": inputs,
        }


@dataclass(frozen=True)
class Spectra:
    """Those of all layers that are linear maps."""

    layers: tuple[LayerSpectrum, ...]

    def rows(self) -> list[dict[str, object]]:
        """One row a layer."""
        return [layer.row() for layer in self.layers]

    def figure(self, ax: Any) -> None:
        """For each layer the error that is left at every rank, from all at the left to none."""
        for place, layer in enumerate(self.layers):
            for values, colour, label in (
                (layer.weight, "C1", "weight"),
                (layer.passed, "C0", "what passes"),
            ):
                curve = truncation_error(values)
                ranks = torch.linspace(0, 1, len(curve))
                style = {"color": colour, "label": label if place == 0 else None}
                ax.plot(ranks, place - 0.85 * curve, linewidth=1.2, **style)
            ax.axhline(place, linewidth=0.4, color="C5")
        ax.set_yticks(range(len(self.layers)), [x.layer or "(the model)" for x in self.layers])
        ax.set_ylim(len(self.layers) - 0.6, -1.05)
        ax.set_xlim(0, 1)
        ax.set_xlabel("rank, as a fraction of the full one; height: relative error that is left")
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def spectra(model: nn.Module, stats: Mapping[str, Stats]) -> Spectra:
    """Singular values of every layer that calibration reached.

    Args:
        model: the target; not changed.
        stats: from `collect`.

    Raises:
        ValueError: if no layer of the model has any.
    """
    sites, _ = find_sites(expand(model))
    found = []
    for path, site in sites.items():
        if (known := stats.get(path)) is not None:
            objective = Objective(site.map, known)
            w = objective.w
            weight, passed = _values(w), _values(objective.whiten(w))
            shape = (w.shape[1], w.shape[2])
            found.append(LayerSpectrum(path, shape, weight, passed, _eigenvalues(known.moment)))
    if not found:
        raise ValueError(
            f"spectra need statistics of the model's layers {list(sites)[:5]}; "
            f"got those of {list(stats)[:5]}"
        )
    return Spectra(tuple(found))


def _values(w: Tensor) -> Tensor:
    """Singular values of all groups, decreasing: (g, m, d) -> (g·min(m, d),)."""
    return torch.linalg.svdvals(w.detach()).flatten().sort(descending=True).values


def _eigenvalues(moment: Tensor | SketchedMoment) -> Tensor | None:
    """Decreasing; of all groups. A look-up's are the shares of its indices."""
    if isinstance(moment, SketchedMoment) or moment.shape[-1] > WIDEST:
        return None
    values = moment if moment.ndim == 1 else torch.linalg.eigvalsh(moment).flatten()
    return values.clamp(min=0).sort(descending=True).values


def truncation_error(values: Tensor) -> Tensor:
    """Relative error of the best rank 0, 1, …, p, from singular values: (p,) -> (p + 1,)."""
    squares = values.double().square().flip(0)
    tail = torch.cat([squares.new_zeros(1), squares.cumsum(0)]).flip(0)
    return (tail / tail[0].clamp(min=torch.finfo(tail.dtype).tiny)).sqrt()


def stable_rank(values: Tensor) -> float:
    """‖W‖_F² / ‖W‖₂² from singular values; 0 for zero."""
    top = values.max()
    return float((values / top).square().sum()) if top > 0 else 0.0


def effective_rank(values: Tensor) -> float:
    """exp(−Σ p log p), p the values as shares of their sum (Roy and Vetterli 2007); 0 for none."""
    total = values.sum()
    return float(torch.special.entr(values / total).sum().exp()) if total > 0 else 0.0
