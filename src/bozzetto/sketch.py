"""Sketches: fixed linear maps that shrink one axis and keep inner products on average."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bozzetto.fold import fold, unfold
from bozzetto.linalg import (
    balanced_factors,
    derive_seed,
    orthogonal,
    random_integers,
    random_normal,
    random_permutation,
    random_signs,
)

FAMILIES: dict[str, type["Sketch"]] = {}


class Sketch(nn.Module, ABC):
    """A linear map U: R^n → R^k with E[UᵀU] = I, drawn from a seed and never trained.

    `down` applies U, `up` its adjoint Uᵀ, each along one axis; `dense` is the slow twin. The random
    numbers are buffers outside the state dict: a checkpoint holds none of them, the seed gives
    them again. (n, k, seed, family) determine U on every platform.

    Raises:
        ValueError: unless 1 ≤ k ≤ n; from the methods, when the axis has another length.
    """

    family: ClassVar[str]

    def __init_subclass__(cls, *, name: str = "") -> None:
        super().__init_subclass__()
        if name:
            cls.family = name
            FAMILIES[name] = cls

    def __init__(self, n: int, k: int, seed: int = 0) -> None:
        super().__init__()
        if not 1 <= k <= n:
            raise ValueError(f"a sketch needs 1 <= k <= n; got k={k} for n={n}")
        self.n, self.k, self.seed = n, k, seed

    def _key(self, purpose: str) -> int:
        return derive_seed(self.seed, self.family, self.n, self.k, purpose)

    def _store(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def _again(self) -> "Sketch":
        """The same sketch, drawn anew."""
        return type(self)(self.n, self.k, self.seed)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What comes from the meta device, where there are no numbers, draws them."""
        empty = [buffer.is_meta for buffer in self.buffers(recurse=False)]
        super()._apply(fn, recurse)
        if any(empty) and not any(buffer.is_meta for buffer in self.buffers(recurse=False)):
            with torch.device("cpu"):
                drawn = dict(self._again().named_buffers(recurse=False))
            for name, buffer in self.named_buffers(recurse=False):
                buffer.copy_(drawn[name])
        return self

    def extra_repr(self) -> str:
        """What decides the map."""
        return f"n={self.n}, k={self.k}, seed={self.seed}"

    @abstractmethod
    def down(self, x: Tensor, dim: int = -1) -> Tensor:
        """U x along axis `dim`: (..., n, ...) -> (..., k, ...)."""

    @abstractmethod
    def up(self, y: Tensor, dim: int = -1) -> Tensor:
        """Uᵀ y along axis `dim`: (..., k, ...) -> (..., n, ...)."""

    def up_onto(self, base: Tensor, y: Tensor, dim: int = -1) -> Tensor:
        """Base + Uᵀ y; the base broadcasts to the result and has length n along `dim`."""
        return sized(base, dim, self.n) + self.up(y, dim)

    @abstractmethod
    def dense(self) -> Tensor:
        """U itself, (k, n)."""

    @abstractmethod
    def variance(self) -> float:
        """E‖(UᵀU − I)v‖² / ‖v‖², averaged over v (for most families the same for every v)."""

    def lookup(self, table: Tensor, index: Tensor) -> Tensor:
        """Rows `index` of Uᵀ table: table (k, m), index (...) of int64 -> (..., m)."""
        return F.embedding(index, self.dense().T.to(table.dtype)) @ sized(table, 0, self.k)

    def forward(self, x: Tensor) -> Tensor:
        """`down` along the last axis."""
        return self.down(x)


def sized(x: Tensor, dim: int, size: int) -> Tensor:
    """Return x if that axis has that length: broadcasting another would be a wrong answer."""
    if x.shape[dim] != size:
        raise ValueError(f"axis {dim} must have length {size}; got shape {tuple(x.shape)}")
    return x


def along(values: Tensor, x: Tensor, dim: int) -> Tensor:
    """A vector (n,) shaped to multiply x along `dim`, in x's type."""
    return values.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1 - dim % x.ndim))


class _Dense(Sketch):
    """A sketch whose matrix is held: U = scale · entries."""

    entries: Tensor  # (k, n)
    scale: float

    def down(self, x: Tensor, dim: int = -1) -> Tensor:
        """Multiply by the held matrix, k·n multiply-adds."""
        u = self.entries.to(x.dtype) * self.scale
        return F.linear(sized(x, dim, self.n).movedim(dim, -1), u).movedim(-1, dim)

    def up(self, y: Tensor, dim: int = -1) -> Tensor:
        """Multiply by its transpose."""
        u = self.entries.to(y.dtype) * self.scale
        return F.linear(sized(y, dim, self.k).movedim(dim, -1), u.T).movedim(-1, dim)

    def dense(self) -> Tensor:
        """The held matrix."""
        return self.entries * self.scale


class Sign(_Dense, name="sign"):
    """Entries ±1/√k: the scaled sign matrix of Kasiviswanathan et al. (arXiv 1710.07850)."""

    def __init__(self, n: int, k: int, seed: int = 0) -> None:
        super().__init__(n, k, seed)
        signs = random_signs(self._key("signs"), k * n)
        self._store("entries", signs.view(k, n).to(torch.get_default_dtype()))
        self.scale = k**-0.5

    def variance(self) -> float:
        """(n − 1)/k."""
        return (self.n - 1) / self.k


class Gauss(_Dense, name="gauss"):
    """Entries N(0, 1/k)."""

    def __init__(self, n: int, k: int, seed: int = 0) -> None:
        super().__init__(n, k, seed)
        entries = random_normal(self._key("entries"), k * n)
        self._store("entries", entries.view(k, n).to(torch.get_default_dtype()))
        self.scale = k**-0.5

    def variance(self) -> float:
        """(n + 1)/k."""
        return (self.n + 1) / self.k


class Hadamard(Sketch, name="hadamard"):
    """k rows, drawn without replacement, of a signed orthogonal transform, scaled by √(n/k) (SRHT).

    The transform is a Kronecker product Q_a ⊗ Q_b with a · b = n, applied as two small matrix
    products: n(a + b) multiply-adds (a prime n has no such factors and costs n²). Rows are
    orthogonal: U Uᵀ = (n/k) I for every n.
    """

    signs: Tensor  # (n,)
    kept: Tensor  # (k,) int64
    place: Tensor  # (n,) int64: position in `kept`, or k
    left: Tensor  # (a, a)
    right: Tensor  # (b, b)

    def __init__(self, n: int, k: int, seed: int = 0) -> None:
        super().__init__(n, k, seed)
        dtype = torch.get_default_dtype()
        kept = random_permutation(self._key("rows"), n)[:k]
        self._store("kept", kept)
        self._store("place", torch.full((n,), k).index_copy(0, kept, torch.arange(k)))
        self._store("signs", random_signs(self._key("signs"), n).to(dtype))
        a, b = balanced_factors(n)
        self._store("left", orthogonal(a).to(dtype))
        self._store("right", orthogonal(b).to(dtype))

    def _transform(self, x: Tensor) -> Tensor:
        square = x.unflatten(-1, (len(self.left), len(self.right)))
        return (self.left.to(x.dtype) @ square @ self.right.to(x.dtype)).flatten(-2)

    def down(self, x: Tensor, dim: int = -1) -> Tensor:
        """Signs, transform, keep k."""
        x = sized(x, dim, self.n).movedim(dim, -1) * self.signs.to(x.dtype)
        y = self._transform(x).index_select(-1, self.kept) * (self.n / self.k) ** 0.5
        return y.movedim(-1, dim)

    def up(self, y: Tensor, dim: int = -1) -> Tensor:
        """Put k values in place, transform, signs."""
        y = F.pad(sized(y, dim, self.k).movedim(dim, -1), (0, 1)).index_select(-1, self.place)
        x = self._transform(y) * (self.signs.to(y.dtype) * (self.n / self.k) ** 0.5)
        return x.movedim(-1, dim)

    def dense(self) -> Tensor:
        """The kept rows of Q_a ⊗ Q_b times the signs."""
        q = torch.kron(self.left, self.right)
        return q[self.kept] * self.signs * (self.n / self.k) ** 0.5

    def variance(self) -> float:
        """n/k − 1."""
        return self.n / self.k - 1


class Count(Sketch, name="count"):
    """One signed bucket a coordinate, drawn independently (CountSketch; Charikar et al. 2002)."""

    signs: Tensor  # (n,)
    bucket: Tensor  # (n,) int64

    def __init__(self, n: int, k: int, seed: int = 0) -> None:
        super().__init__(n, k, seed)
        self._store("bucket", self._draw_buckets())
        self._store("signs", random_signs(self._key("signs"), n).to(torch.get_default_dtype()))

    def _draw_buckets(self) -> Tensor:
        return random_integers(self._key("bucket"), self.n, self.k)

    def down(self, x: Tensor, dim: int = -1) -> Tensor:
        """Add every signed coordinate to its bucket."""
        signed = (sized(x, dim, self.n) * along(self.signs, x, dim)).movedim(dim, 0)
        y = signed.new_zeros(self.k, *signed.shape[1:]).index_add(0, self.bucket, signed)
        return y.movedim(0, dim)

    def up(self, y: Tensor, dim: int = -1) -> Tensor:
        """Read every coordinate from its bucket, signed."""
        return sized(y, dim, self.k).index_select(dim, self.bucket) * along(self.signs, y, dim)

    def dense(self) -> Tensor:
        """One sign a column."""
        columns = torch.arange(self.n, device=self.signs.device)
        return self.signs.new_zeros(self.k, self.n).index_put((self.bucket, columns), self.signs)

    def lookup(self, table: Tensor, index: Tensor) -> Tensor:
        """One row of the table an index, signed."""
        signs = F.embedding(index, self.signs.to(table.dtype).unsqueeze(-1))  # (..., 1)
        return F.embedding(self.bucket[index], sized(table, 0, self.k)) * signs

    def variance(self) -> float:
        """(n − 1)/k."""
        return (self.n - 1) / self.k


class Fold(Count, name="fold"):
    """Random signs, then coordinate j is added to bucket j mod k: n additions, no gather.

    With the signs random, E[UᵀU] = I and the variance hold for every fixed assignment of buckets;
    loads differ by at most one, so the variance is the least that one signed bucket a coordinate
    can have. Rows are orthogonal (their supports are disjoint); U Uᵀ = (n/k) I when k divides n.
    """

    def _draw_buckets(self) -> Tensor:
        return torch.arange(self.n) % self.k

    def down(self, x: Tensor, dim: int = -1) -> Tensor:
        """Signs, then the sum of the blocks of length k."""
        return fold(sized(x, dim, self.n), self.signs, self.k, dim)

    def up(self, y: Tensor, dim: int = -1) -> Tensor:
        """Repeat the k values to length n, signed."""
        return unfold(sized(y, dim, self.k), self.signs, dim)

    def up_onto(self, base: Tensor, y: Tensor, dim: int = -1) -> Tensor:
        """In the same pass."""
        return unfold(sized(y, dim, self.k), self.signs, dim, sized(base, dim, self.n))

    def variance(self) -> float:
        """Σ load²/n − 1: n/k − 1 when k divides n."""
        full, larger = divmod(self.n, self.k)
        squares = larger * (full + 1) ** 2 + (self.k - larger) * full**2
        return squares / self.n - 1


def make_sketch(family: str, n: int, k: int, seed: int = 0) -> Sketch:
    """The sketch of that family.

    Raises:
        ValueError: for an unknown family, or unless 1 ≤ k ≤ n.
    """
    return FAMILIES[known_family(family)](n, k, seed)


def known_family(family: str) -> str:
    """The name of a family; raises ValueError for another."""
    if family not in FAMILIES:
        raise ValueError(f"a sketch family is one of {sorted(FAMILIES)}; got {family!r}")
    return family
