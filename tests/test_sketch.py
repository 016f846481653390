"""Sketches against their dense twins, their exact formulas and their pinned bits."""

import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import torch
from torch import Tensor
from torch.testing import assert_close

from bozzetto.linalg import random_normal
from bozzetto.sketch import FAMILIES, Count, Fold, Hadamard, make_sketch
from bozzetto.testing import check_sketch

every_family = pytest.mark.parametrize("family", FAMILIES)
ORTHOGONAL_SIZES = [
    (n, k) for n in (1, 2, 3, 7, 12, 16, 30, 97) for k in {1, (n + 1) // 2, max(1, n - 1), n}
]
DRAWS = 1500


def normal(*shape: int, seed: int = 0) -> Tensor:
    return random_normal(seed, torch.Size(shape).numel()).view(shape)


def assert_mean(draws: Tensor, expected: Tensor | float):
    """Within five standard errors, from the draws' own spread; 1e-5 for entries held in float32."""
    error = (draws.mean(0) - expected).abs()
    assert (error <= 5 * draws.std(0) / len(draws) ** 0.5 + 1e-5).all(), error.max()


@every_family
def test_a_family_keeps_the_contract_of_sketches(family: str):
    check_sketch(FAMILIES[family])


# ---- what a family is


@pytest.mark.parametrize(
    ("family", "formula"),
    [
        ("sign", lambda n, k: (n - 1) / k),
        ("gauss", lambda n, k: (n + 1) / k),
        ("hadamard", lambda n, k: n / k - 1),
        ("count", lambda n, k: (n - 1) / k),
        ("fold", lambda n, k: n / k - 1),
    ],
)
def test_the_variance_is_the_exact_formula_for_every_vector(family: str, formula):
    n, k = 12, 4
    vectors = torch.stack([torch.eye(n)[3].double(), torch.ones(n).double(), normal(n)])
    draws = []
    for seed in range(DRAWS):
        sketch = make_sketch(family, n, k, seed)
        error = sketch.up(sketch.down(vectors)) - vectors
        draws.append(error.square().sum(1) / vectors.square().sum(1))
    assert make_sketch(family, n, k).variance() == formula(n, k)
    assert_mean(torch.stack(draws), formula(n, k))


@pytest.mark.parametrize(("n", "k"), ORTHOGONAL_SIZES)
def test_the_rows_of_hadamard_are_orthogonal_and_equal_in_length(n: int, k: int):
    u = make_sketch("hadamard", n, k, seed=1).dense().double()
    assert_close(u @ u.T, n / k * torch.eye(k).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("n", "k"), ORTHOGONAL_SIZES)
def test_the_rows_of_fold_are_orthogonal_with_loads_that_differ_by_at_most_one(n: int, k: int):
    u = make_sketch("fold", n, k, seed=1).dense()
    loads = (u @ u.T).diagonal()
    assert_close(u @ u.T, loads.diag(), atol=0, rtol=0)
    assert loads.sum() == n
    assert loads.max() - loads.min() == (1 if n % k else 0)


def test_every_coordinate_of_count_has_one_signed_bucket():
    u = make_sketch("count", 40, 7, seed=1).dense()
    assert ((u != 0).sum(0) == 1).all()
    assert set(u.abs().sum(0).tolist()) == {1.0}


@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_hadamard_is_the_walsh_hadamard_matrix_for_a_power_of_two(n: int):
    sketch = Hadamard(n, n, seed=2)
    rows = torch.from_numpy(scipy.linalg.hadamard(n)).float()[sketch.kept] / n**0.5
    assert_close(sketch.dense() * sketch.signs, rows)


@pytest.mark.parametrize("n", [3, 5, 7, 97])
def test_hadamard_is_the_hartley_transform_for_an_odd_prime(n: int):
    sketch = Hadamard(n, n, seed=2)
    fourier = np.asarray(scipy.fft.fft(np.eye(n), norm="ortho"))
    rows = torch.from_numpy(fourier.real - fourier.imag).float()[sketch.kept]
    assert_close(sketch.dense() * sketch.signs, rows, atol=1e-5, rtol=0)


@every_family
def test_lookup_equals_rows_of_the_dense_product(family: str):
    sketch = make_sketch(family, 30, 7, seed=3).double()
    table = normal(7, 4)
    for index in (torch.tensor(29), torch.tensor([[0, 5, 5], [29, 1, 0]]), torch.empty(0).long()):
        assert_close(sketch.lookup(table, index), (sketch.dense().T @ table)[index])


@every_family
@pytest.mark.parametrize("index", [-1, 30])
def test_lookup_refuses_an_index_outside_the_axis(family: str, index: int):
    with pytest.raises(IndexError):
        make_sketch(family, 30, 7).lookup(torch.ones(7, 4), torch.tensor([index]))


@every_family
def test_lookup_refuses_a_table_of_another_size(family: str):
    with pytest.raises(ValueError, match="length 7; got shape \\(8, 4\\)"):
        make_sketch(family, 30, 7).lookup(torch.ones(8, 4), torch.tensor([0]))


# ---- bad input


@every_family
@pytest.mark.parametrize(("n", "k"), [(5, 0), (5, -1), (5, 6), (0, 0)])
def test_a_size_outside_its_range_is_an_error_that_says_so(family: str, n: int, k: int):
    with pytest.raises(ValueError, match=f"1 <= k <= n; got k={k} for n={n}"):
        make_sketch(family, n, k)


def test_an_unknown_family_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"\['count', 'fold', .*; got 'bold'"):
        make_sketch("bold", 8, 2)


@every_family
def test_an_axis_of_another_length_is_an_error_and_is_never_broadcast(family: str):
    sketch = make_sketch(family, 12, 5)
    with pytest.raises(ValueError, match=r"length 12; got shape \(3, 1\)"):
        sketch.down(torch.ones(3, 1))
    with pytest.raises(ValueError, match=r"length 5; got shape \(7, 3\)"):
        sketch.up(torch.ones(7, 3), dim=0)
    with pytest.raises(IndexError):
        sketch.down(torch.ones(12, 12), dim=2)


# ---- the paper's layer (sketching.md §3.2)


def naive_estimate(weight: Tensor, k: int, pairs: int, seed: int) -> Tensor:
    """1/(2l) Σ (U1ᵀU1 W + W U2ᵀU2), the weight of an SK-FC layer whose cores are U1 W and W U2ᵀ."""
    m, n = weight.shape
    total = torch.zeros_like(weight)
    for pair in range(pairs):
        u1 = make_sketch("sign", m, k, seed=2 * (seed * pairs + pair))
        u2 = make_sketch("sign", n, k, seed=2 * (seed * pairs + pair) + 1)
        total += u1.up(u1.down(weight, 0), 0) + u2.up(u2.down(weight, 1), 1)
    return total / (2 * pairs)


@pytest.mark.parametrize(("k", "pairs"), [(3, 1), (2, 2)])
def test_the_papers_layer_is_unbiased_with_the_exact_error_and_below_its_certificate(k, pairs):
    m, n = 6, 5
    weight, x = normal(m, n), normal(n, seed=1)
    draws = torch.stack([naive_estimate(weight, k, pairs, seed) for seed in range(1000)])
    y, energy, lk = weight @ x, weight.square().sum() * x.square().sum(), 4 * pairs * k
    overlap = (weight.square().sum(0) * x.square()).sum()
    exact = ((m - 1) * y.square().sum() + energy + y.square().sum() - 2 * overlap) / lk
    certificate = (m * y.square().sum() + energy) / lk
    assert_mean(draws, weight)
    assert_mean((draws @ x - y).square().sum(1), exact)
    assert exact <= certificate
    relative = (draws - weight).square().sum((1, 2)) / weight.square().sum()
    assert_mean(relative, (m + n - 2) / lk)


# ---- the bits: a change here is a new BITS_VERSION


def signs_of(text: str) -> list[float]:
    return [1.0 if sign == "+" else -1.0 for sign in text]


def test_the_first_row_of_sign_is_pinned():
    row = make_sketch("sign", 12, 5, seed=7).dense()[0] * 5**0.5
    assert row.round().tolist() == signs_of("+++--+-+++-+")


def test_the_first_row_of_gauss_is_pinned():
    row = [-0.39097378, -0.08181243, 0.08501065, -0.38090774, -0.14622059, 0.22707127]
    row += [0.49222156, 1.36006510, 0.81292927, 0.18419027, 0.19703080, 0.27257156]
    got = make_sketch("gauss", 12, 5, seed=7).dense()[0]
    assert_close(got, torch.tensor(row), atol=1e-6, rtol=0)


def test_the_rows_and_signs_of_hadamard_are_pinned():
    sketch = Hadamard(12, 5, seed=7)
    assert sketch.kept.tolist() == [11, 0, 1, 3, 9]
    assert sketch.signs.tolist() == signs_of("-+---++-++++")
    a, b = 0.61090517, 0.16369151  # (√3 ± 1) / 2 · 1/√5, the Hartley part
    row = [-0.4472136, -0.4472136, 0.4472136, -0.4472136, a, a, a, a, b, -b, -b, b]
    assert_close(sketch.dense()[0], torch.tensor(row), atol=1e-6, rtol=0)


def test_the_buckets_and_signs_of_count_are_pinned():
    sketch = Count(12, 5, seed=7)
    assert sketch.bucket.tolist() == [3, 1, 0, 2, 2, 2, 3, 0, 2, 2, 2, 2]
    assert sketch.signs.tolist() == signs_of("+--+++-++---")


def test_the_buckets_and_signs_of_fold_are_pinned():
    sketch = Fold(12, 5, seed=7)
    assert sketch.bucket.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert sketch.signs.tolist() == signs_of("-+-++++-+++-")
