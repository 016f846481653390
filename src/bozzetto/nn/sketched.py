"""The sketched layer: trained cores behind fixed sketches on either side, and its exact fit."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from bozzetto.linalg import derive_seed, solve_psd
from bozzetto.nn.parts import Down, Hashed, JointDown, Sum, Up, map_order, write_weight_
from bozzetto.nn.stack import Stack
from bozzetto.sketch import Sketch, make_sketch

Sides = Literal["both", "in", "out"]
Form = Literal["channel", "joint"]
Place = torch.device | str | None


class Shape(NamedTuple):
    """What a sketched layer replaces; n and m are of one group, `dim` is the channels' axis."""

    n: int
    m: int
    groups: int
    taps: tuple[int, ...]
    dim: int

    @property
    def patch(self) -> int:
        """Length of one group's input patch, d = n·taps."""
        return self.n * math.prod(self.taps)


class Basis(NamedTuple):
    """One term as algebra: its trained core and scale · U on the side `on_input` tells."""

    core: nn.Module
    u: Tensor  # (rows, d) on the input, (rows, m) on the output; float64
    on_input: bool


class Sketched(Sum, ABC):
    """The layer of Kasiviswanathan et al. (arXiv 1710.07850), channel-only form and its relatives.

    An input-side term is core·down, an output-side term up·core; one of each makes a pair of the
    paper, "in" or "out" alone the one-sided forms. The paper's l terms a side are one whose sketch
    has the rows of l (`Stack`). Every side is multiplied by 1/√(number of sides), with cores drawn
    like the dense layer's weight: then the outputs' variance is the dense layer's and, in the
    infinite-width limit, so is the tangent kernel. Sketches come again from `seed`; only cores and
    bias are trained and stored.

    Raises:
        ValueError: for terms or k below 1, or so large that nothing is saved.
    """

    plain: ClassVar[type[nn.Module]]  # the torch layer that it stands for

    def __init__(
        self,
        shape: Shape,
        k: int,
        outputs: Callable[[Sketch, float], nn.Module],
        inputs: Callable[[Sketch, float], nn.Module],
        *,
        bias: bool,
        terms: int,
        sides: Sides,
        family: str,
        seed: int,
        wide: int = 1,
    ) -> None:
        """Build the terms.

        Args:
            shape: of the dense layer.
            k: rows of every sketch (times `wide` for sketches of whole patches).
            outputs: makes an output-side term from its sketch and scale.
            inputs: makes an input-side term from its sketch and scale.
            bias: whether the layer has one.
            terms: terms a side.
            sides: which sides.
            family: of the sketches.
            seed: of the sketches.
            wide: taps that an input-side sketch covers.
        """
        check_size(shape, k, terms, sides)
        scale = 2**-0.5 if sides == "both" else 1.0

        def drawn(side: str, n: int, k: int) -> Sketch:
            keys = (derive_seed(seed, side, t) for t in range(terms))
            found = [make_sketch(family, n, k, key) for key in keys]
            return found[0] if terms == 1 else Stack(found)

        parts = []
        if sides != "in":
            parts.append(outputs(drawn("out", shape.m, k), scale))
        if sides != "out":
            parts.append(inputs(drawn("in", shape.n * wide, k * wide), scale))
        like = cast(nn.Parameter, next(parts[0].parameters()))
        values = like.new_empty(shape.m * shape.groups) if bias else None
        super().__init__(*parts, bias=values, dim=shape.dim)
        self.shape, self.k, self.sides, self.family, self.seed = shape, k, sides, family, seed
        self.to(like)
        self.reset_parameters()

    @classmethod
    def from_dense(
        cls,
        layer: nn.Module,
        k: int,
        *,
        moment: Tensor | None = None,
        mean: Tensor | None = None,
        terms: int = 1,
        sides: Sides | None = None,
        family: str = "fold",
        form: Form = "channel",
        seed: int = 0,
    ) -> Self:
        """The sketched layer fitted to a trained one: `fit_` says what moment and mean are.

        Raises:
            TypeError: for a layer of another kind.
            ValueError: see `Sketched`; for an embedding that renormalises its rows (max_norm).
        """
        if type(layer) is not cls.plain:
            raise TypeError(f"{cls.__name__} is made from nn.{cls.plain.__name__}; got {layer!r}")
        weight, bias = cast(Tensor, layer.weight), getattr(layer, "bias", None)
        options: dict[str, Any] = cls._geometry(layer)
        if cls.plain is not nn.Embedding:
            options["bias"] = bias is not None
        options |= {} if sides is None else {"sides": sides}
        options |= {} if form == "channel" else {"form": form}
        options |= {"terms": terms, "family": family, "seed": seed}
        made = cast(Any, cls)(k=k, device=weight.device, dtype=weight.dtype, **options)
        return made.fit_(map_order(layer, weight), bias, moment=moment, mean=mean)

    @classmethod
    @abstractmethod
    def _geometry(cls, layer: Any) -> dict[str, Any]:
        """The arguments that make a layer like a torch one, but for its bias."""

    def fan_in(self) -> int:
        """By which torch draws the dense layer: d."""
        return self.shape.patch

    def reset_parameters(self) -> None:
        """Draw cores and bias like torch draws the dense ones: uniform within ±1/√fan_in."""
        bound = self.fan_in() ** -0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        """What the layer replaces, and the size of its sketches."""
        n, m, g, taps, _ = self.shape
        parts = [f"{n * g} -> {m * g}", f"k={self.k}", f"sides={self.sides!r}", f"seed={self.seed}"]
        parts += [f"taps={taps}"] * bool(taps) + [f"groups={g}"] * (g > 1)
        return ", ".join(parts)

    def bases(self) -> list[Basis]:
        """The terms as algebra."""
        return [_basis(term, math.prod(self.shape.taps)) for term in self.terms]

    def weight(self) -> Tensor:
        """The dense weight that the layer applies, float64, (m, n per group, *taps)."""
        n, m, g, taps, _ = self.shape
        total = torch.zeros(g, m, self.shape.patch, dtype=torch.float64)
        for core, u, on_input in self.bases():
            values = map_order(core, cast(Tensor, core.weight)).detach().double().cpu()
            values = values.reshape(g, m, -1) if on_input else values.reshape(g, len(u), -1)
            total += values @ u if on_input else u.T @ values
        return total.reshape(g * m, n, *taps)

    def fit_(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        moment: Tensor | None = None,
        mean: Tensor | None = None,
        gradient: Tensor | None = None,
    ) -> Self:
        """Set the cores to the best approximation of a dense layer: closed form, exact optimum.

        Minimises ‖G^½ (W − U1ᵀS1 − S2 U2) C^½‖: S1 = (U1 G U1ᵀ)⁻¹ U1 G W, then S2 from the
        residual, (W − U1ᵀS1) C U2ᵀ (U2 C U2ᵀ)⁻¹ (optimality conditions of the two cores). With a
        bias and a mean, C is centred and the bias takes (W − Ŵ)μ.

        Args:
            weight: (m, n per group, *taps).
            bias: (m,) of the dense layer.
            moment: C = E[x xᵀ] of input patches, (g, d, d) or (d, d) with d = n·taps, or its
                diagonal (d,). None is the identity.
            mean: μ = E[x], (g, d) or (d,).
            gradient: G, second moment of the output's gradient, (g, m, m). None is the identity.
        """
        w = weight.detach().double().cpu().reshape(self.shape.groups, self.shape.m, -1)
        c, mu, g = _exact(moment), _exact(mean), _exact(gradient)
        if bias is None or c is None:
            mu = None
        if c is not None and mu is not None:
            c = (c.diag() if c.ndim == 1 else c) - mu.unsqueeze(-1) * mu.unsqueeze(-2)
        self._fit_inputs_(self._fit_outputs_(w, g), c)
        if bias is not None and self.bias is not None:
            shift = torch.zeros(len(bias), dtype=torch.float64)
            if mu is not None:
                change = w - self.weight().reshape(w.shape)
                shift = (change @ mu.expand(w.shape[0], -1).unsqueeze(-1)).flatten()
            with torch.no_grad():
                self.bias.copy_(bias.detach().double().cpu() + shift)
        return self

    def _fit_outputs_(self, w: Tensor, gradient: Tensor | None) -> Tensor:
        """Fit the output-side cores to w (g, m, d); returns what they leave."""
        found = [basis for basis in self.bases() if not basis.on_input]
        if not found:
            return w
        u = torch.cat([basis.u for basis in found])  # (L, m)
        ug = u if gradient is None else u @ gradient
        cores = solve_psd(ug @ u.T, ug @ w)  # (g, L, d)
        for basis, core in zip(found, cores.split([len(b.u) for b in found], -2), strict=True):
            write_weight_(basis.core, core)
        return w - u.T @ cores

    def _fit_inputs_(self, w: Tensor, moment: Tensor | None) -> None:
        """Fit the input-side cores to w (g, m, d)."""
        found = [basis for basis in self.bases() if basis.on_input]
        if not found:
            return
        u = torch.cat([basis.u for basis in found])  # (L, d)
        uc = u if moment is None else u * moment if moment.ndim == 1 else u @ moment
        cores = solve_psd(uc @ u.T, uc @ w.mT).mT  # (g, m, L)
        for basis, core in zip(found, cores.split([len(b.u) for b in found], -1), strict=True):
            write_weight_(basis.core, core)


def _exact(moment: Tensor | None) -> Tensor | None:
    return None if moment is None else moment.detach().double().cpu()


def _basis(term: nn.Module, taps: int) -> Basis:
    if isinstance(term, Hashed):
        u = term.scale * term.sketch.dense().double().cpu()
        if term.padding_idx is not None:
            u[:, term.padding_idx] = 0.0
        return Basis(term, u, True)
    first, last = cast(nn.Sequential, term)
    if isinstance(last, Up):
        return Basis(first, last.scale * last.sketch.dense().double().cpu(), False)
    assert isinstance(first, Down | JointDown)
    u = first.scale * first.sketch.dense().double().cpu()
    if isinstance(first, JointDown):
        return Basis(last, u, True)
    return Basis(last, torch.kron(u, torch.eye(taps, dtype=torch.float64)), True)


def kept_values(shape: Shape, k: int, terms: int, sides: Sides) -> int:
    """Trained weight values of one group: k·terms times the widths that stay, times taps."""
    width = {"both": shape.m + shape.n, "in": shape.m, "out": shape.n}[sides]
    return k * terms * width * math.prod(shape.taps)


def check_size(shape: Shape, k: int, terms: int, sides: Sides) -> None:
    """Raise ValueError unless the sketched layer is smaller than the dense one."""
    check_terms(terms, sides)
    dense, one = shape.m * shape.patch, kept_values(shape, 1, terms, sides)
    most = (dense - 1) // one
    if not 1 <= k <= most:
        raise ValueError(
            f"a sketched {shape.n * shape.groups} -> {shape.m * shape.groups} layer with "
            f"{terms} term(s) on {sides!r} needs 1 <= k <= {most} to hold fewer than the "
            f"dense layer's {dense} values a group; got k={k}"
        )


def check_terms(terms: int, sides: Sides) -> None:
    """Raise ValueError unless they say of which terms a layer is the sum."""
    if sides not in ("both", "in", "out"):
        raise ValueError(f"sides is 'both', 'in' or 'out'; got {sides!r}")
    if not isinstance(terms, int) or terms < 1:
        raise ValueError(f"a sketched layer needs a whole number of terms >= 1; got {terms!r}")
