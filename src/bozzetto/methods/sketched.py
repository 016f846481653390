"""The paper's layer: cores behind random sketches, fitted by closed-form least squares."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bozzetto.maps import LinearMap
from bozzetto.methods.method import (
    Method,
    Objective,
    fitted_errors,
    fresh_bias_,
    fresh_variance,
    spread_sizes,
    torch_variance,
)
from bozzetto.nn.sketched import Shape, Sides, Sketched, check_terms, kept_values
from bozzetto.ops import Lookup
from bozzetto.sketch import known_family


@dataclass(frozen=True)
class SketchedMethod(Method):
    """W ≈ Σ (U1ᵀ S1 + S2 U2), sketches from a seed; size is k, the rows of every sketch.

    Raises:
        ValueError: for an unknown family or side, or less than one term.
    """

    family: str = "fold"
    sides: Sides = "both"
    terms: int = 1

    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        known_family(self.family)
        check_terms(self.terms, self.sides)

    def _sides(self, m: LinearMap) -> Sides:
        """A look-up keeps its vocabulary: hashing a trained table only adds noise."""
        return "out" if isinstance(m.op, Lookup) else self.sides

    def values(self, m: LinearMap, size: int) -> int:
        """Of all cores."""
        taps = tuple(m.weight.shape[2:])
        shape = Shape(m.weight.shape[1], m.block[0], m.op.groups, taps, m.op.dim)
        return kept_values(shape, size, self.terms, self._sides(m)) * m.op.groups

    def sizes(self, m: LinearMap) -> list[int]:
        """Fewer than for other methods: every size is fitted to know its error."""
        return spread_sizes(self.most(m), 12)

    def build(self, m: LinearMap, size: int, seed: int) -> nn.Module:
        """The sketched layer of the map's kind."""
        options: dict[str, Any] = {} if isinstance(m.op, Lookup) else {"bias": m.bias is not None}
        made = m.op.sketched()(
            m.inputs,
            m.outputs,
            k=size,
            terms=self.terms,
            sides=self._sides(m),
            family=self.family,
            seed=seed,
            device=m.weight.device,
            dtype=m.weight.dtype,
            **options,
        )
        scale = (fresh_variance(m) / torch_variance(m)) ** 0.5
        with torch.no_grad():
            for core in made.terms.parameters():
                core.mul_(scale)
        fresh_bias_(made.bias, m)
        return made

    def fit_(self, layer: nn.Module, objective: Objective) -> None:
        """`Sketched.fit_` in the objective's metric."""
        made = cast(Sketched, layer)
        made.fit_(objective.map.weight, moment=objective.moment, gradient=objective.gradient)
        objective.shift_bias_(self.bias(layer), self.weight(made, objective.map))

    def weight(self, layer: nn.Module, m: LinearMap) -> Tensor:
        """The sum of the terms."""
        return cast(Sketched, layer).weight().reshape(m.op.groups, *m.block)

    def errors(self, objective: Objective, sizes: Sequence[int]) -> list[float]:
        """Of a fit at every size, for one draw of the sketches."""
        return fitted_errors(self, objective, sizes)
