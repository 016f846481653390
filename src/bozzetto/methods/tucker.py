"""Tucker-2 of a convolution: pointwise to fewer inputs, a core with the taps, pointwise out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from torch import Tensor, nn

from bozzetto.maps import LinearMap
from bozzetto.methods.method import (
    Form,
    Method,
    Objective,
    fresh_,
    fresh_bias_,
    fresh_variance,
    spread_sizes,
)
from bozzetto.methods.regression import (
    Factors,
    improve_inputs,
    leading_inputs,
    regress,
    regression_errors,
)
from bozzetto.nn.parts import map_order, write_weight_
from bozzetto.ops import Conv

_WORTH = 0.9  # of the error of the next cheaper form: what a dearer one may have at most


@dataclass(frozen=True)
class Tucker(Method):
    """W ≈ B · core · (A ⊗ I): both channel modes shrink; size is the rank r_out of the outputs.

    A starts at the leading directions of the input mode, whitened by the channels' moment; given A,
    B and the core are the reduced-rank regression of the layer in the full patch moment, exact;
    A is then improved by conjugate gradients on its own least squares, `rounds` times (the
    alternating form of importance-sketched tensor regression, Zhang et al. 2020).

    Attributes:
        inputs: the rank r_in of the inputs. None tries many in `forms`; elsewhere it means the same
            share of the inputs as of the outputs.
        rounds: of the alternation.

    Raises:
        ValueError: for less than one input or a negative number of rounds.
    """

    inputs: int | None = None
    rounds: int = 8

    def __post_init__(self) -> None:
        inputs, rounds = 1 if self.inputs is None else self.inputs, self.rounds
        if not (isinstance(inputs, int) and isinstance(rounds, int) and inputs > 0 <= rounds):
            raise ValueError(
                "tucker needs whole numbers, inputs >= 1 and rounds >= 0; "
                f"got {self.inputs!r} and {self.rounds!r}"
            )

    def ranks(self, m: LinearMap, size: int) -> tuple[int, int]:
        """(r_in, r_out) of a size."""
        n, (rows, d) = m.weight.shape[1], m.block
        r_in = min(n, self.inputs or max(1, round(size * n / rows)))
        return r_in, min(size, rows, r_in * d // n)  # more outputs than the core has are of no use

    def values(self, m: LinearMap, size: int) -> int:
        """r_in·n + r_in·r_out·taps + r_out·m a group; only plain convolutions with taps have it."""
        n, rows, taps = m.weight.shape[1], m.block[0], m.block[1] // m.weight.shape[1]
        if not isinstance(m.op, Conv) or m.op.transposed or taps == 1 or min(n, rows) < 2:
            return m.weight.numel()
        r_in, r_out = self.ranks(m, size)
        return (r_in * n + r_in * r_out * taps + r_out * rows) * m.op.groups

    def most(self, m: LinearMap, keep: float = 1.0) -> int:
        """At most the number of outputs."""
        return min(super().most(m, keep), m.block[0])

    def forms(self, objective: Objective) -> list[Form]:
        """At all pairs of ranks, unless `inputs` is given, that are worth their values."""
        if self.inputs is not None:
            return super().forms(objective)
        m = objective.map
        each = [replace(self, inputs=r) for r in spread_sizes(m.weight.shape[1], 32)]
        pairs = {t.ranks(m, size): t for t in each for size in range(1, t.most(m) + 1)}
        errors = regression_errors(objective, pairs)
        found: list[Form] = []
        tried = (Form(t, r[1], errors[r]) for r, t in pairs.items())
        for form in sorted(tried, key=lambda f: (f.method.values(m, f.size), f.error)):
            if not found or form.error < _WORTH * found[-1].error:
                found.append(form)
        return found

    def build(self, m: LinearMap, size: int, seed: int) -> nn.Module:
        """Sequential(pointwise n → r_in, layer r_in → r_out, pointwise r_out → m)."""
        (r_in, r_out), g = self.ranks(m, size), m.op.groups
        first = m.op.pointwise(m.inputs, r_in * g, bias=False, like=m.weight)
        core = m.op.layer(r_in * g, r_out * g, bias=False, like=m.weight)
        last = m.op.pointwise(r_out * g, m.outputs, bias=m.bias is not None, like=m.weight)
        n = m.weight.shape[1]
        fresh_(first, 1 / n)
        fresh_(core, n / r_in * fresh_variance(m))
        fresh_(last, 1 / r_out)
        fresh_bias_(self.bias(last), m)
        return nn.Sequential(first, core, last)

    def fit_(self, layer: nn.Module, objective: Objective) -> None:
        """Write the factors into the three layers."""
        first, core, last = cast(nn.Sequential, layer)
        r_in = cast(Tensor, first.weight).shape[0] // objective.map.op.groups
        r_out = cast(Tensor, last.weight).shape[1]
        factors = regress(objective, leading_inputs(objective)[:, :r_in], r_out)
        for _ in range(self.rounds):
            factors = regress(objective, improve_inputs(objective, factors), r_out)
        for part, value in zip((first, core, last), factors.balanced(), strict=True):
            write_weight_(part, value)
        objective.shift_bias_(self.bias(layer), self.weight(layer, objective.map))

    def weight(self, layer: nn.Module, m: LinearMap) -> Tensor:
        """B · core · (A ⊗ I)."""
        first, core, last = cast(nn.Sequential, layer)
        g = m.op.groups
        a, mid, b = (
            map_order(part, cast(Tensor, part.weight)).detach().double().cpu()
            for part in (first, core, last)
        )
        r_out = b.shape[1]
        return Factors(
            a.reshape(g, -1, m.weight.shape[1]), mid.reshape(g, r_out, -1), b.reshape(g, -1, r_out)
        ).weight()

    def errors(self, objective: Objective, sizes: Sequence[int]) -> list[float]:
        """Before A is improved: what `fit_` reaches or betters, from one factorisation."""
        ranks = [self.ranks(objective.map, size) for size in sizes]
        found = regression_errors(objective, ranks)
        return [found[pair] for pair in ranks]
