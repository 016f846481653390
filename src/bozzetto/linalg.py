"""Random numbers that a seed and a counter decide; orthogonal matrices; solves with moments."""

import hashlib
import math
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import torch
from torch import Tensor

BITS_VERSION = 1  # part of every key: a change of the stream is a new version, never a surprise
_GENERATORS = RLock()
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)


def whole_seed(seed: int) -> int:
    """The seed as Python's int, as plans hold it; raises TypeError for what is no whole number."""
    try:
        return operator.index(seed)
    except TypeError:
        raise TypeError(f"a seed is a whole number; got {seed!r}") from None


def derive_seed(seed: int, *names: object) -> int:
    """A 63-bit seed for one purpose, from the user's seed and the names of that purpose."""
    text = "/".join(["bozzetto", str(BITS_VERSION), str(whole_seed(seed)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _shift_right(z: Tensor, by: int) -> Tensor:
    """Logical shift of int64 (torch's own is arithmetic)."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def random_bits(seed: int, count: int) -> Tensor:
    """`count` random int64: splitmix64 (Steele, Lea, Flood 2014) of a counter; (count,).

    Integer tensor arithmetic only, so every platform and device gives the same bits.
    """
    z = (torch.arange(1, count + 1, dtype=torch.int64) * _GOLDEN) + (seed & ((1 << 63) - 1))
    z = (z ^ _shift_right(z, 30)) * _MIX1
    z = (z ^ _shift_right(z, 27)) * _MIX2
    return z ^ _shift_right(z, 31)


def random_signs(seed: int, count: int) -> Tensor:
    """±1 in float64 with equal chance; (count,)."""
    return 1.0 - 2.0 * (random_bits(seed, count) < 0).double()


def random_uniform(seed: int, count: int) -> Tensor:
    """Uniform on the open interval (0, 1), float64, 52 bits; (count,)."""
    # Not 53: the half step would round the largest value up to 1.
    return (_shift_right(random_bits(seed, count), 12).double() + 0.5) * 2.0**-52


def random_normal(seed: int, count: int) -> Tensor:
    """Standard normal by Box and Muller (1958), float64; (count,)."""
    half = (count + 1) // 2
    u = random_uniform(seed, 2 * half)
    radius, angle = (-2.0 * u[:half].log()).sqrt(), 2 * math.pi * u[half:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]


def random_integers(seed: int, count: int, below: int) -> Tensor:
    """Integers in [0, below), int64; (count,)."""
    return (random_uniform(seed, count) * below).long().clamp_(max=below - 1)


def random_permutation(seed: int, count: int) -> Tensor:
    """A uniform permutation of 0 … count − 1, int64; (count,)."""
    return torch.argsort(random_bits(seed, count), stable=True)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's own generators at a seed, for constructors that draw from them; restored after.

    All threads share these generators: one at a time has them.
    """
    with _GENERATORS, torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield


def orthogonal(n: int) -> Tensor:
    """A symmetric orthogonal (n, n) with no entry above √(2/n): Hadamard ⊗ Hartley, float64.

    Hadamard (Sylvester) for the power of two in n, the discrete Hartley transform
    cas(2πij/n)/√n for its odd part.
    """
    odd = n // (n & -n)
    angle = (torch.arange(odd)[:, None] * torch.arange(odd) % odd).double() * (2 * math.pi / odd)
    q = (angle.cos() + angle.sin()) / odd**0.5
    h2 = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5
    while len(q) < n:
        q = torch.kron(h2, q)
    return q


def balanced_factors(n: int) -> tuple[int, int]:
    """Factors a · b = n with a ≤ b as close as they can be."""
    a = next(a for a in range(math.isqrt(n), 0, -1) if n % a == 0)
    return a, n // a


def solve_psd(a: Tensor, b: Tensor) -> Tensor:
    """The minimum-norm x with a x = b for a symmetric positive semidefinite a: (..., n, n).

    Directions whose eigenvalue is below n·eps of the largest count as empty, so that dead units and
    rank-deficient moments give finite answers.
    """
    values, vectors = torch.linalg.eigh((a + a.mT) / 2)
    floor = values[..., -1:].clamp_min(0) * a.shape[-1] * torch.finfo(a.dtype).eps
    inverse = torch.where(values > floor, 1 / values.clamp_min(1e-300), 0.0)
    return vectors @ (inverse.unsqueeze(-1) * (vectors.mT @ b))


def roots_psd(a: Tensor) -> tuple[Tensor, Tensor]:
    """Whitening of a moment: a^½ and its pseudo-inverse a^-½, float64; (..., n, n) each."""
    values, vectors = torch.linalg.eigh((a + a.mT).double() / 2)
    floor = values[..., -1:].clamp_min(0) * a.shape[-1] * torch.finfo(torch.float64).eps
    kept = values > floor
    root = torch.where(kept, values, 0.0).sqrt()
    inverse = torch.where(kept, 1 / root.clamp_min(1e-150), 0.0)
    scaled, unscaled = vectors * root.unsqueeze(-2), vectors * inverse.unsqueeze(-2)
    return scaled @ vectors.mT, unscaled @ vectors.mT
