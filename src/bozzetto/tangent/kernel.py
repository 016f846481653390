"""`Program`: an architecture whose limiting kernels can be asked for, and what guards them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bozzetto.tangent.activation import Activation
from bozzetto.tangent.backward import tangent_kernel
from bozzetto.tangent.forward import joint
from bozzetto.tangent.joint import JointActivation
from bozzetto.tangent.pairs import by_blocks
from bozzetto.tangent.program import (
    Bias,
    Input,
    Linear,
    Matrix,
    Nonlinear,
    Product,
    Respect,
    Vector,
    Width,
    leaves,
    ordered,
    parents,
)
from bozzetto.tangent.quadrature import growth
from bozzetto.tangent.sampled import sampled_nngp, sampled_ntk


@dataclass(frozen=True, eq=False)
class Program:
    """A network x ↦ `output`, by its tensor program.

    Inputs are (N, d), (N, P, d) for P tokens or pixels, or images (N, d, H, W). Kernels are in the
    limit of infinite width, at initialisation, with respect to one coordinate of the output (the
    kernel of several is this one times the identity), and computed in `dtype`.

    Raises:
        ValueError: if a matrix is applied to vectors of different widths, or a hidden matrix has a
            mean, or there is not exactly one input.
    """

    output: Vector
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        order = ordered(self.output)
        if len([v for v in order if isinstance(v, Input)]) != 1:
            raise ValueError("a program needs exactly one Input")
        _check_widths(order)

    def nngp(
        self,
        x: Tensor,
        x2: Tensor | None = None,
        *,
        block: int = 64,
        samples: int | None = None,
        seed: int = 0,
    ) -> Tensor:
        """The covariance of the output over random weights: (N, N'), or (N, N', P, P).

        `samples` draws that many coordinates of every vector instead of applying exact rules
        (relative error about 1/√samples): it takes any program.
        """
        first, second = self._inputs(x, x2)
        if means := self._means():
            raise ValueError(f"the readout {means[0]!r} has a mean: the output grows with width")
        if samples is not None:
            both = first if second is None else torch.cat([first, second])
            kernel = sampled_nngp(self.output, both, samples, seed)
            kernel = kernel[: len(first), 0 if second is None else len(first) :]
        else:

            def pair(a: Tensor, b: Tensor) -> Tensor:
                return joint(self.output, a, b).covariance(self.output, self.output)

            kernel = by_blocks(pair, first, second, block)
        return kernel[..., 0, 0] if self.output.positions == 1 else kernel

    def ntk(
        self,
        x: Tensor,
        x2: Tensor | None = None,
        *,
        respect_to: Respect = "unit",
        block: int = 64,
        samples: int | None = None,
        seed: int = 0,
    ) -> Tensor:
        """The tangent kernel: (N, N'), or (N, N', P, P) between P rows of output.

        Raises:
            ValueError: when the GIA check fails and `samples` is not given, naming the use that
                breaks it, or when even the full rule does not cover the program.
        """
        first, second = self._inputs(x, x2)
        found = self.violations()
        if samples is not None:
            if self.output.positions != 1:
                raise ValueError("a sampled tangent kernel needs an output of one position")
            if never := [v for v in found if not v.sampled]:
                raise ValueError(f"no tangent kernel: {never[0].reason}")
            both = first if second is None else torch.cat([first, second])
            kernel = sampled_ntk(
                self.output, both, samples, seed, respect_to, independent=not found
            )
            return kernel[: len(first), 0 if second is None else len(first) :]
        if found:
            raise ValueError(
                f"the gradient independence check fails: {found[0].reason}"
                + (" (samples=… applies the full rule)" if found[0].sampled else "")
            )

        def pair(a: Tensor, b: Tensor) -> Tensor:
            return tangent_kernel(joint(self.output, a, b), self.output, respect_to)

        kernel = by_blocks(pair, first, second, block)
        return kernel[..., 0, 0] if self.output.positions == 1 else kernel

    def _inputs(self, x: Tensor, x2: Tensor | None) -> tuple[Tensor, Tensor | None]:
        node = next(v for v in ordered(self.output) if isinstance(v, Input))
        second = None if x2 is None else _rows(x2, node).to(self.dtype)
        return _rows(x, node).to(self.dtype), second

    def _means(self) -> list[str]:
        products = [v for v in ordered(self.output) if isinstance(v, Product)]
        return [p.matrix.name for p in products if p.matrix.mean]

    def violations(self) -> list[Violation]:
        """What breaks the simple GIA check (ibid., Condition 1) or the theorem's other conditions.

        The readout is drawn independently of everything else, has mean zero, and is used nowhere
        else; no matrix meets its transpose; nonlinearities are polynomially bounded.
        """
        order, last = ordered(self.output), leaves(self.output)
        return [*_readout(order, last, self.output), *_transposes(order), *_growth(order)]


@dataclass(frozen=True)
class Violation:
    """Why the theorem does not hold; `sampled` says that the full rule covers it."""

    reason: str
    sampled: bool


def _rows(x: Tensor, node: Input) -> Tensor:
    """Inputs as (N, P, d)."""
    if x.ndim == 4:
        x = x.flatten(2).mT
    if x.ndim == 2:
        x = x[:, None]
    if x.ndim != 3 or x.shape[1:] != (node.positions, node.width):
        raise ValueError(
            f"the program's input has {node.positions} position(s) of {node.width} features; "
            f"got {tuple(x.shape)}"
        )
    return x


def _check_widths(order: list[Vector]) -> None:
    columns: dict[Matrix, Width] = {}
    last = leaves(order[-1])
    for v in (v for v in order if isinstance(v, Product) and not v.transposed):
        if columns.setdefault(v.matrix, v.argument.width) != v.argument.width:
            raise ValueError(
                f"{v.matrix.name} is applied to widths {columns[v.matrix]!r} and "
                f"{v.argument.width!r}: a matrix has one number of columns"
            )
        if isinstance(v.argument.width, int) and not _is_data(v.argument):
            raise ValueError(
                f"{v.matrix.name} follows a layer of fixed width {v.argument.width}: all widths "
                "between input and readout must grow together"
            )
        if v.matrix.mean and v not in last:
            raise ValueError(f"only a readout may have a mean; {v.matrix.name} is a hidden matrix")


def _is_data(v: Vector) -> bool:
    """Whether v is made of the inputs alone."""
    if isinstance(v, Linear):
        return all(_is_data(term) for _, term in v.terms)
    return isinstance(v, Input)


def _readout(order: list[Vector], last: set[Vector], output: Vector) -> list[Violation]:
    found = [
        Violation(f"the output contains {_name(v)}, which is not a readout v·x or its bias", False)
        for v in last
        if not isinstance(v, Product | Bias)
    ]
    inner = {p for v in order if not _outermost(v, output) for p in parents(v)}
    matrices = {v.matrix for v in last if isinstance(v, Product)}
    for v in order:
        if isinstance(v, Product) and v.matrix in matrices and (v not in last or v.transposed):
            found.append(Violation(f"the readout {v.matrix.name!r} is also used inside", False))
        if v in last and v in inner:
            found.append(Violation(f"the readout's {_name(v)} goes back into the network", False))
    found.extend(
        Violation(f"the readout {m.name!r} has mean {m.mean}, not zero", True)
        for m in matrices
        if m.mean
    )
    return found


def _outermost(v: Vector, output: Vector) -> bool:
    """Whether v is one of the combinations between the readout and the output."""
    if v is output:
        return True
    return isinstance(output, Linear) and any(_outermost(v, term) for _, term in output.terms)


def _transposes(order: list[Vector]) -> list[Violation]:
    uses = {(v.matrix, v.transposed) for v in order if isinstance(v, Product)}
    return [
        Violation(f"{m.name!r} is used together with its transpose in the forward pass", True)
        for m, transposed in uses
        if transposed and (m, False) in uses
    ]


def _growth(order: list[Vector]) -> list[Violation]:
    return [
        Violation(f"{v.name} grows exponentially: the theorem needs polynomial growth", False)
        for v in order
        if isinstance(v, Nonlinear) and _grows(v) != "polynomial"
    ]


def _grows(v: Nonlinear) -> str:
    """How φ grows in each of its arguments, and in all at once."""
    if isinstance(v.function, Activation | JointActivation):
        return v.function.growth
    count = len(v.arguments)
    directions = torch.cat([torch.eye(count), torch.ones(1, count)]).tolist()

    def along(x: Tensor) -> Tensor:
        ways = [
            [x[:, None].expand(-1, a.positions) * d for d, a in zip(way, v.arguments, strict=True)]
            for way in directions
        ]
        return torch.stack([v.function(*way).abs().flatten(1).amax(1) for way in ways]).amax(0)

    return growth(along)


def _name(v: Vector) -> str:
    match v:
        case Product():
            return f"product with {v.matrix.name!r}"
        case Bias() | Nonlinear():
            return repr(v.name)
        case _:
            return type(v).__name__
