"""The random bits of every sketch: pinned, and random enough."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from bozzetto import linalg

SEEDS = [0, 1, 1234567, 2**62 + 12345, 2**63 - 1]
WORD = (1 << 64) - 1


def splitmix64(seed: int, count: int) -> list[int]:
    """The generator of Steele, Lea and Flood (2014) in Python's integers."""
    out = []
    for step in range(1, count + 1):
        z = (seed + step * 0x9E3779B97F4A7C15) & WORD
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
        out.append(z ^ (z >> 31))
    return out


def unsigned(bits: torch.Tensor) -> list[int]:
    return [int(b) & WORD for b in bits]


def fail(_drawn: torch.Tensor):
    raise ValueError("midway")


def assert_mean(draws: torch.Tensor, expected: float):
    """The mean is within five standard errors, from the draws' own spread."""
    error = (draws.mean(0) - expected).abs()
    assert (error <= 5 * draws.std(0) / len(draws) ** 0.5).all()


def test_the_bits_are_the_published_known_answers_of_splitmix64():
    assert unsigned(linalg.random_bits(1234567, 5)) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_bits_equal_splitmix64_in_plain_integers(seed: int):
    assert unsigned(linalg.random_bits(seed, 300)) == splitmix64(seed, 300)


def test_a_shorter_draw_is_the_beginning_of_a_longer_one():
    for draw in (linalg.random_bits, linalg.random_signs, linalg.random_uniform):
        assert draw(9, 5).tolist() == draw(9, 50)[:5].tolist()


def test_every_bit_is_set_half_the_time_and_independent_of_the_next_word():
    bits = linalg.random_bits(3, 4096)
    ones = (bits[:, None] >> torch.arange(64) & 1).double()
    assert_mean(ones, 0.5)
    assert_mean((2 * ones[1:] - 1) * (2 * ones[:-1] - 1), 0.0)


def test_seeds_are_pinned_and_have_63_bits():
    assert linalg.BITS_VERSION == 1
    assert linalg.derive_seed(0) == 8837174439037623088
    assert linalg.derive_seed(7, "fold", 12, 5, "signs") == 7581953394222386915
    assert all(0 <= linalg.derive_seed(seed, "layer") < 1 << 63 for seed in range(100))


def test_seeds_differ_by_user_seed_and_by_every_name_and_their_order():
    named = [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, 1, "a"), (0, "a"), (0,)]
    assert len({linalg.derive_seed(*names) for names in named}) == len(named)


def test_draws_are_pinned():
    assert linalg.random_signs(3, 8).tolist() == [1, -1, -1, 1, 1, -1, 1, -1]
    assert linalg.random_integers(3, 8, 10).tolist() == [1, 7, 6, 0, 2, 6, 1, 8]
    assert linalg.random_permutation(3, 8).tolist() == [2, 5, 1, 7, 3, 0, 6, 4]
    normal = torch.tensor([-1.5824108415676572, 0.7571708962481434, -1.3596896829481073])
    assert_close(linalg.random_normal(3, 3), normal.double(), rtol=0, atol=1e-6)


def test_signs_are_balanced_and_neighbours_are_uncorrelated():
    signs = linalg.random_signs(4, 10_000)
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert_mean(signs, 0.0)
    for lag in (1, 2, 64):
        assert_mean(signs[lag:] * signs[:-lag], 0.0)


def test_uniform_draws_follow_the_uniform_distribution():
    assert stats.kstest(linalg.random_uniform(5, 10_000).numpy(), "uniform").pvalue > 1e-4


@pytest.mark.parametrize(
    ("seed", "word"), [(496489529909367957, WORD - 2045), (7046029254386353131, 0)]
)
def test_uniform_draws_stay_inside_the_open_interval_at_the_extreme_words(seed: int, word: int):
    # These seeds were found by running splitmix64 backwards from the word.
    assert unsigned(linalg.random_bits(seed, 1)) == [word]
    assert 0.0 < linalg.random_uniform(seed, 1).item() < 1.0
    assert linalg.random_integers(seed, 1, 7).item() == (6 if word else 0)
    assert linalg.random_normal(seed, 1).isfinite()


@pytest.mark.parametrize("count", [1, 2, 9999, 10_000])
def test_normal_draws_have_the_asked_number_and_are_finite(count: int):
    draws = linalg.random_normal(6, count)
    assert draws.shape == (count,)
    assert draws.dtype == torch.float64
    assert draws.isfinite().all()


def test_normal_draws_follow_the_normal_distribution_with_uncorrelated_halves():
    draws = linalg.random_normal(6, 10_000)
    assert stats.kstest(draws.numpy(), "norm").pvalue > 1e-4
    assert_mean(draws[:5000] * draws[5000:], 0.0)
    assert_mean(draws[:5000].square() * draws[5000:].square(), 1.0)


@pytest.mark.parametrize("below", [1, 3, 10, 64])
def test_integers_fill_their_range_evenly(below: int):
    draws = linalg.random_integers(8, 6400, below)
    counts = np.bincount(draws.numpy(), minlength=below)
    assert len(counts) == below
    assert below == 1 or stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("count", [1, 2, 17, 1000])
def test_a_permutation_holds_every_index_once(count: int):
    order = linalg.random_permutation(2, count)
    assert sorted(order.tolist()) == list(range(count))


def test_the_six_permutations_of_three_come_equally_often():
    seeds = (linalg.derive_seed(0, draw) for draw in range(1200))
    orders = [tuple(linalg.random_permutation(seed, 3).tolist()) for seed in seeds]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-4


def test_torchs_generator_is_seeded_inside_and_restored_after_even_when_it_fails():
    before = torch.get_rng_state().tolist()
    cpu, draws = torch.device("cpu"), []
    for seed in (1, 1, 2):
        with linalg.seeded(seed, cpu):
            draws.append(torch.rand(4).tolist())
    with pytest.raises(ValueError, match="midway"), linalg.seeded(1, cpu):
        fail(torch.rand(1))
    assert draws[0] == draws[1] != draws[2]
    assert torch.get_rng_state().tolist() == before


@pytest.mark.parametrize("n", [1, 2, 3, 12, 97, 384])
def test_the_hadamard_hartley_matrix_is_orthogonal_to_double_precision(n: int) -> None:
    q = linalg.orthogonal(n)
    assert_close(q @ q.T, torch.eye(n, dtype=torch.float64), atol=1e-13, rtol=0)
    assert_close(q, q.T)
    assert q.abs().max() <= (2 / n) ** 0.5 + 1e-15
