"""Block-diagonal cores between two isometries: a sum of terms sketched along both modes at once."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bozzetto.linalg import balanced_factors, orthogonal, random_signs
from bozzetto.nn.parts import CONVS, Side, unobserved
from bozzetto.sketch import Sketch, along, sized

__all__ = ["BlockLinear", "BlockTable", "Blocked", "Isometry"]

# Blocks of fewer channels are trained as one dense weight (chosen in trials on two cores).
_NARROW = 32


class Isometry(Sketch):
    """U: R^n → R^{l·k}, k = ⌈n/l⌉: l folds of k rows with orthogonal signs, one below the other.

    Row r of fold t is Σ_j Q_tj s_(jk+r) x_(jk+r), with random signs s and an orthogonal Q (l, l):
    UᵀU = I for every n and seed, and U Uᵀ = I where l divides n. From 9 folds on Q is a Kronecker
    product of two factors a and b: at most (a + b)·l·k multiply-adds.

    Raises:
        ValueError: unless 1 ≤ l ≤ n.
    """

    family = "isometry"

    signs: Tensor  # (n,)
    left: Tensor  # (a, a)
    right: Tensor  # (b, b), Q = left ⊗ right; symmetric both

    def __init__(self, n: int, blocks: int, seed: int = 0) -> None:
        super().__init__(n, blocks, seed)
        self.blocks, self.rows = blocks, -(-n // blocks)
        self.k = blocks * self.rows
        dtype = torch.get_default_dtype()
        self._store("signs", random_signs(self._key("signs"), n).to(dtype))
        a, b = factors(blocks)
        self._store("left", orthogonal(a).to(dtype))
        self._store("right", orthogonal(b).to(dtype))

    def _again(self) -> "Isometry":
        return Isometry(self.n, self.blocks, self.seed)

    def down(self, x: Tensor, dim: int = -1) -> Tensor:
        """U x along an axis: (..., n, ...) -> (..., l·k, ...)."""
        dim = dim % x.ndim - x.ndim
        x = sized(x, dim, self.n) * along(self.signs, x, dim)
        if self.k > self.n:
            x = F.pad(x, (0, 0) * (-1 - dim) + (0, self.k - self.n))
        return self._mixed(x.unflatten(dim, (self.blocks, -1)), dim - 1).flatten(dim - 1, dim)

    def up(self, y: Tensor, dim: int = -1) -> Tensor:
        """Uᵀ y along an axis: (..., l·k, ...) -> (..., n, ...)."""
        dim = dim % y.ndim - y.ndim
        folds = sized(y, dim, self.k).unflatten(dim, (self.blocks, -1))
        x = self._mixed(folds, dim - 1).flatten(dim - 1, dim)
        return x.narrow(dim, 0, self.n) * along(self.signs, y, dim)

    def parts(self, x: Tensor) -> Tensor:
        """U x of rows, fold by fold: (b, n) -> (l, b, k)."""
        signed = x * self.signs.to(x.dtype)
        if self.k > self.n:
            signed = F.pad(signed, (0, self.k - self.n))
        return self._mixed(signed.unflatten(1, (self.blocks, -1)).transpose(0, 1), 0)

    def whole(self, y: Tensor) -> Tensor:
        """Uᵀ y of rows, fold by fold: (l, b, k) -> (b, n)."""
        x = self._mixed(y, 0).transpose(0, 1).flatten(1)
        return x.narrow(1, 0, self.n) * self.signs.to(y.dtype)

    def dense(self) -> Tensor:
        """U itself, (l·k, n)."""
        spread = torch.kron(self.mix(), torch.eye(self.rows).to(self.left))
        return spread[:, : self.n] * self.signs

    def mix(self) -> Tensor:
        """Q: (l, l)."""
        return torch.kron(self.left, self.right)

    def variance(self) -> float:
        """None at all: UᵀU = I."""
        return 0.0

    def _mixed(self, x: Tensor, dim: int) -> Tensor:
        """Q along an axis of length l."""
        a, b = len(self.left), len(self.right)
        y = self.right.to(x.dtype) @ x.unflatten(dim, (a, b)).flatten(dim % x.ndim + 2)
        if a > 1:
            y = self.left.to(x.dtype) @ y.flatten(-2)
        return y.reshape(x.shape)


def factors(blocks: int) -> tuple[int, int]:
    """A and b with a · b blocks: one small matrix up to 8, from there two."""
    return (1, blocks) if blocks <= 8 else balanced_factors(blocks)


class BlockLinear(nn.Module):
    """A linear layer whose weight has l blocks on its diagonal: (..., l·k) -> (..., l·h)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        blocks: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if in_features % blocks or out_features % blocks:
            raise ValueError(
                f"{blocks} blocks need widths that they divide; got {in_features}, {out_features}"
            )
        self.blocks = blocks
        shape = out_features, in_features // blocks
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))  # (l·h, k)
        nn.init.uniform_(self.weight, -(shape[1] ** -0.5), shape[1] ** -0.5)

    def extra_repr(self) -> str:
        """Widths and blocks."""
        out, k = self.weight.shape
        return f"{k * self.blocks} -> {out}, blocks={self.blocks}"

    def forward(self, x: Tensor) -> Tensor:
        """Every block on its own part of the axis."""
        lead, count = x.shape[:-1], self.blocks
        parts = x.reshape(-1, count, x.shape[-1] // count).transpose(0, 1)  # (l, b, k)
        y = parts @ self.weight.unflatten(0, (count, -1)).mT
        return y.transpose(0, 1).reshape(*lead, self.weight.shape[0])


class Blocked(nn.Sequential):
    """`Down`, a core of l blocks, `Up`: W x, W = √l Σ V_tᵀ S_t U_t, in the order that is quickest.

    Rows stay fold by fold between the isometries. Narrow blocks are trained as one dense weight:
    a grouped product of few channels takes longer than a dense one. A core with hooks, or in whose
    place stands another module, is called as it is.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Part by part, or in one of the two shorter ways."""
        down, core, up = self._parts()
        u, v = cast(Isometry, down.sketch), cast(Isometry, up.sketch)
        if type(core) not in (BlockLinear, *CONVS) or not (
            torch.compiler.is_compiling() or unobserved(core)
        ):
            return super().forward(input)
        if self.training and min(u.rows, v.rows) < _NARROW:
            return _applied(core, input, self.weight(), down.groups)
        if isinstance(core, BlockLinear):
            rows = input.reshape(-1, input.shape[-1])
            blocks = core.weight.unflatten(0, (core.blocks, -1))
            y = v.whole(u.parts(rows) @ blocks.mT) * up.scale
            return y.reshape(*input.shape[:-1], -1)
        return super().forward(input)

    def weight(self) -> Tensor:
        """W: (g·m, n per group, *taps), differentiable by the cores."""
        down, core, up = self._parts()
        u, v = cast(Isometry, down.sketch), cast(Isometry, up.sketch)
        own = cast(Tensor, core.weight)
        cores = own.reshape(down.groups, u.blocks, v.rows, 1, u.rows, -1)
        spread = cores * u.mix().to(own.dtype).reshape(u.blocks, 1, u.blocks, 1, 1)
        spread = spread.flatten(3, 4)[..., : u.n, :] * u.signs.to(own.dtype).unsqueeze(-1)
        whole = v.up(spread.flatten(1, 2), 1) * up.scale  # (g, m, n, taps)
        return whole.reshape(-1, u.n, *own.shape[2:])

    def _parts(self) -> tuple[Side, nn.Module, Side]:
        down, core, up = self
        return cast(Side, down), core, cast(Side, up)


def _applied(core: nn.Module, x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """The core's operation with another weight, in so many groups."""
    if isinstance(core, BlockLinear):
        return F.linear(x, weight)
    conv = cast(Any, core)
    padding = conv.padding
    if conv.padding_mode != "zeros":
        x = F.pad(x, conv._reversed_padding_repeated_twice, conv.padding_mode)
        padding = 0
    apply = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[weight.ndim - 2]
    return apply(x, weight, None, conv.stride, padding, conv.dilation, groups)


class BlockTable(nn.Module):
    """Look-ups of U for an isometry of the vocabulary, times blocks: (...) of int64 -> (..., l·h).

    Index i has one row in each of the l blocks: i mod k, times Q_tj s_i, j = ⌊i/k⌋. The row of
    `padding_idx` is zero. An index outside 0 … n − 1 raises IndexError, as in torch's embedding.
    """

    def __init__(self, sketch: Isometry, table: Tensor, padding_idx: int | None = None) -> None:
        super().__init__()
        self.sketch, self.padding_idx = sketch, padding_idx
        self.weight = table if isinstance(table, nn.Parameter) else nn.Parameter(table)  # (l·k, h)

    def extra_repr(self) -> str:
        """Width of a block, and the index left zero."""
        return f"width={self.weight.shape[1]}, padding_idx={self.padding_idx}"

    def forward(self, index: Tensor) -> Tensor:
        """The blocks' rows of each index, one beside the other."""
        u, k = self.sketch, self.sketch.rows
        place = (index % k).unsqueeze(-1) + k * torch.arange(u.blocks, device=index.device)
        signs = F.embedding(index, u.signs.unsqueeze(-1))  # refuses what is no index
        factor = u.mix()[index // k] * signs  # (..., l)
        if self.padding_idx is not None:
            factor = factor.masked_fill((index == self.padding_idx).unsqueeze(-1), 0.0)
        rows = F.embedding(place, self.weight)  # (..., l, h)
        return (rows * factor.unsqueeze(-1).to(rows.dtype)).flatten(-2)
