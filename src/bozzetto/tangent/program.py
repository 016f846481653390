"""The language of tensor programs: an architecture written once as matrices, vectors and functions.

Yang, *Tensor Programs II* (arXiv 2006.14548). Every vector of the program stands for `positions`
vectors of the network (tokens, pixels, members of a batch), one a row, for every input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from bozzetto.tangent.activation import Activation
from bozzetto.tangent.joint import JointActivation

Width: TypeAlias = str | int
Respect: TypeAlias = Literal["unit", "weight"]
"""The weights a kernel differentiates in: of W = gain·A/√columns with A = σω, "unit" takes the
standard normal ω, "weight" the A that carries the variance (the convention of Yang's papers)."""
Function: TypeAlias = Callable[..., Tensor]


def unit(respect_to: Respect) -> bool:
    """Whether a kernel differentiates in standard normal weights.

    Raises:
        ValueError: for a convention that does not exist.
    """
    if respect_to not in ("unit", "weight"):
        raise ValueError(f"respect_to is 'unit' or 'weight'; got {respect_to!r}")
    return respect_to == "unit"


@dataclass(frozen=True, eq=False)
class Matrix:
    """A random matrix W = gain · A / √columns with A_ij ~ N(mean, variance), iid.

    `rows` is the width of W x: a name for a width that goes to infinity, an int for one that stays.
    `trained` says whether its gradient is part of the tangent kernel. The same object used twice
    is a tied weight. Only a readout may have a mean.
    """

    name: str
    variance: float = 1.0
    gain: float = 1.0
    rows: Width = "n"
    mean: float = 0.0
    trained: bool = True

    @property
    def scale(self) -> float:
        """σ²: the variance of the entries of W, times the number of columns."""
        return self.gain**2 * self.variance

    def rate(self, respect_to: Respect) -> float:
        """What a weight's part of the tangent kernel is multiplied by (see `Respect`)."""
        return self.scale if unit(respect_to) else self.gain**2

    @property
    def T(self) -> Transposed:
        """Wᵀ."""
        return Transposed(self)

    def __matmul__(self, vector: Vector) -> Product:
        return Product(self.rows, vector.positions, self, vector)


@dataclass(frozen=True)
class Transposed:
    """Wᵀ, to multiply a vector of W's row width; the result has the width W is applied to."""

    matrix: Matrix

    def __matmul__(self, vector: Vector) -> Product:
        if vector.width != self.matrix.rows:
            raise ValueError(
                f"{self.matrix.name}.T multiplies a vector of width {self.matrix.rows!r}; "
                f"got {vector.width!r}"
            )
        return Product(vector.width, vector.positions, self.matrix, vector, transposed=True)


@dataclass(frozen=True, eq=False)
class Vector:
    """A vector of the program at `positions` positions; its coordinates run over `width`."""

    width: Width
    positions: int

    def mix(self, coefficient: Coefficient, positions: int | None = None) -> Linear:
        """Combine positions: row s of the result is Σ_t coefficient[s, t] · row t."""
        if isinstance(coefficient, Tensor):
            if coefficient.ndim != 2 or coefficient.shape[1] != self.positions:
                raise ValueError(
                    f"mixing {self.positions} positions needs a (…, {self.positions}) matrix; "
                    f"got {tuple(coefficient.shape)}"
                )
            positions = coefficient.shape[0]
        return Linear(self.width, positions or self.positions, ((coefficient, self),))

    def mean(self) -> Linear:
        """The average over positions, one row."""
        return self.mix(torch.full((1, self.positions), 1 / self.positions, dtype=torch.float64))

    def at(self, position: int) -> Linear:
        """One position."""
        return self.mix(torch.eye(self.positions, dtype=torch.float64)[[position]])

    def __add__(self, other: Vector) -> Linear:
        return add(self, other)

    def __sub__(self, other: Vector) -> Linear:
        return add(self, -1.0 * other)

    def __mul__(self, factor: float) -> Linear:
        return Linear(self.width, self.positions, ((float(factor), self),))

    __rmul__ = __mul__


@dataclass(frozen=True, eq=False)
class Input(Vector):
    """The data: `width` is the number of features, which stays finite; kernel ⟨x, x'⟩ / width."""


@dataclass(frozen=True, eq=False)
class Ones(Vector):
    """The vector whose coordinates are all 1, used to subtract a mean over coordinates."""


@dataclass(frozen=True, eq=False)
class Bias(Vector):
    """b = gain · β, β ~ N(0, variance) by coordinate; one row, spread over positions when added."""

    name: str = "b"
    variance: float = 1.0
    gain: float = 1.0
    trained: bool = True

    @property
    def scale(self) -> float:
        """The variance of a coordinate."""
        return self.gain**2 * self.variance

    def rate(self, respect_to: Respect) -> float:
        """What a bias's part of the tangent kernel is multiplied by (see `Respect`)."""
        return self.scale if unit(respect_to) else self.gain**2


@dataclass(frozen=True, eq=False)
class Product(Vector):
    """W x, or Wᵀ x."""

    matrix: Matrix
    argument: Vector
    transposed: bool = False


@dataclass(frozen=True, eq=False)
class Moment:
    """A matrix of scalars that converge: `function` of the Gram matrices E Z^a Z^b of `pairs`.

    It maps tensors (..., P_a, P_b) to (..., rows, columns). By the theorem its value is its limit,
    and gradients do not flow through it when the readout passes the GIA check.
    """

    function: Function
    pairs: tuple[tuple[Vector, Vector], ...]
    name: str = "moment"


Coefficient: TypeAlias = float | Tensor | Moment


@dataclass(frozen=True, eq=False)
class Linear(Vector):
    """Σ coefficient · vector; a float multiplies, a matrix mixes positions."""

    terms: tuple[tuple[Coefficient, Vector], ...]


@dataclass(frozen=True, eq=False)
class Nonlinear(Vector):
    """φ(x, y, …), coordinate by coordinate; positions are the last axis of what φ receives."""

    function: Activation | JointActivation | Function
    arguments: tuple[Vector, ...]
    name: str = "nonlinearity"


def add(*vectors: Vector) -> Linear:
    """Σ vectors, those of one position spread over the positions of the others.

    Raises:
        ValueError: if widths differ: such vectors live in different spaces.
    """
    if len({v.width for v in vectors}) != 1:
        raise ValueError(f"a sum needs vectors of one width; got {[v.width for v in vectors]}")
    positions = max(v.positions for v in vectors)
    if any(v.positions not in (1, positions) for v in vectors):
        raise ValueError(f"a sum needs equal positions; got {[v.positions for v in vectors]}")
    spread = torch.ones(positions, 1, dtype=torch.float64)
    terms = tuple((1.0 if v.positions == positions else spread, v) for v in vectors)
    return Linear(vectors[0].width, positions, terms)


def stack(vectors: Sequence[Vector]) -> Linear:
    """The positions of several vectors one after the other."""
    total = sum(v.positions for v in vectors)
    eye = torch.eye(total, dtype=torch.float64)
    parts = eye.split([v.positions for v in vectors], dim=1)
    return Linear(vectors[0].width, total, tuple(zip(parts, vectors, strict=True)))


def apply(
    function: Activation | JointActivation | Function,
    *vectors: Vector,
    positions: int | None = None,
    name: str | None = None,
) -> Nonlinear:
    """φ(vectors): an `Activation` or `JointActivation` of one, or a torch function of several.

    Raises:
        ValueError: if widths differ or are finite: a nonlinearity of finitely many coordinates has
            no deterministic limit.
    """
    widths = {v.width for v in vectors}
    if len(widths) != 1 or isinstance(next(iter(widths)), int):
        raise ValueError(
            "a nonlinearity needs vectors of one width, which goes to infinity; "
            f"got {sorted(map(str, widths))}"
        )
    label = name or getattr(function, "__name__", type(function).__name__)
    rows = positions or vectors[0].positions
    return Nonlinear(vectors[0].width, rows, function, vectors, label)


def parents(vector: Vector) -> tuple[Vector, ...]:
    """What a vector is computed from, the arguments of its moments included."""
    match vector:
        case Product():
            return (vector.argument,)
        case Nonlinear():
            return vector.arguments
        case Linear():
            moments = [c for c, _ in vector.terms if isinstance(c, Moment)]
            used = [v for m in moments for pair in m.pairs for v in pair]
            return (*(v for _, v in vector.terms), *used)
        case _:
            return ()


def ordered(output: Vector) -> list[Vector]:
    """Every vector of the program, each after its parents (iteratively: programs are deep)."""
    order: dict[Vector, None] = {}
    pending: list[tuple[Vector, bool]] = [(output, False)]
    while pending:
        vector, ready = pending.pop()
        if vector in order:
            continue
        if ready:
            order[vector] = None
        else:
            pending.append((vector, True))
            pending.extend((parent, False) for parent in parents(vector))
    return list(order)


def leaves(output: Vector) -> set[Vector]:
    """The vectors that the output is a combination of: readouts and their biases, as a rule."""
    if isinstance(output, Linear):
        return {leaf for _, term in output.terms for leaf in leaves(term)}
    return {output}
