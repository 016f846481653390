"""Block-diagonal cores between two isometries: a sum of terms sketched along both modes at once."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bozzetto.linalg import random_signs
from bozzetto.sketch import Sketch, balanced_factors, orthogonal

__all__ = ["BlockLinear", "BlockTable", "Isometry"]


class Isometry(Sketch):
    """U: R^n → R^{l·k}, k = ⌈n/l⌉: l folds of k rows with orthogonal signs, one below the other.

    Row r of fold t is Σ_j Q_tj s_(jk+r) x_(jk+r), with random signs s and an orthogonal Q (l, l):
    UᵀU = I for every n and seed, and U Uᵀ = I where l divides n. From 9 folds on Q is a Kronecker
    product of two factors a and b: at most (a + b)·l·k multiply-adds.

    Raises:
        ValueError: unless 1 ≤ l ≤ n.
    """

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

    family = "isometry"

    def down(self, x: Tensor, dim: int = -1) -> Tensor:
        """U x along an axis: (..., n, ...) -> (..., l·k, ...)."""
        dim = dim % x.ndim - x.ndim
        x = self._checked(x, dim, self.n) * self._signs(x, dim)
        if self.k > self.n:
            x = F.pad(x, (0, 0) * (-1 - dim) + (0, self.k - self.n))
        return self._mixed(x, dim)

    def up(self, y: Tensor, dim: int = -1) -> Tensor:
        """Uᵀ y along an axis: (..., l·k, ...) -> (..., n, ...)."""
        dim = dim % y.ndim - y.ndim
        x = self._mixed(self._checked(y, dim, self.k), dim)
        return x.narrow(dim, 0, self.n) * self._signs(y, dim)

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

    def _checked(self, x: Tensor, dim: int, size: int) -> Tensor:
        if x.shape[dim] != size:
            raise ValueError(f"axis {dim} must have length {size}; got shape {tuple(x.shape)}")
        return x

    def _signs(self, x: Tensor, dim: int) -> Tensor:
        return self.signs.to(x.dtype).view(-1, *[1] * (-1 - dim))

    def _mixed(self, x: Tensor, dim: int) -> Tensor:
        """Q ⊗ I along an axis of length l·k."""
        a, b = len(self.left), len(self.right)
        y = x.unflatten(dim, (a, b, self.rows)).flatten(dim)  # (..., a, b, k·rest)
        y = self.right.to(x.dtype) @ y
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


class BlockTable(nn.Module):
    """Look-ups of U for an isometry of the vocabulary, times blocks: (...) of int64 -> (..., l·h).

    Index i has one row in each of the l blocks: i mod k, times Q_tj s_i, j = ⌊i/k⌋. The row of
    `padding_idx` is zero.
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
        factor = u.mix()[index // k] * u.signs[index].unsqueeze(-1)  # (..., l)
        if self.padding_idx is not None:
            factor = factor.masked_fill((index == self.padding_idx).unsqueeze(-1), 0.0)
        rows = F.embedding(place, self.weight)  # (..., l, h)
        return (rows * factor.unsqueeze(-1).to(rows.dtype)).flatten(-2)
