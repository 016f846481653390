"""Observations read in passes or seen once, against those that are held."""

import tracemalloc

import numpy as np
import pytest
from planted import planted

from bozzetto.regress import ISLETMultiRegressor, ISLETRegressor, RankOne, SparseISLETRegressor

RANKS = (2, 2, 2)


class Stream:
    """Batches made anew at every reading, which are counted."""

    def __init__(self, x, y, cuts):
        self.x, self.y, self.cuts, self.readings = x, y, [*cuts, len(y)], 0

    def __iter__(self):
        self.readings += 1
        start = 0
        for end in self.cuts:
            yield self.x[start:end], self.y[start:end]
            start = end


@pytest.fixture(scope="module")
def data():
    return planted((9, 8, 7), RANKS, 500, 0.2)


@pytest.mark.parametrize("cuts", [[], [1, 2, 300], range(37, 500, 37)], ids=str)
@pytest.mark.parametrize("kind", [ISLETRegressor, SparseISLETRegressor])
def test_a_stream_gives_what_the_array_gives(data, cuts, kind):
    stream = Stream(data.x, data.y, cuts)
    streamed = kind(RANKS).fit_batches(stream)
    held = kind(RANKS).fit(data.x, data.y)
    np.testing.assert_allclose(streamed.coef_, held.coef_, atol=1e-10)
    assert streamed.intercept_ == pytest.approx(held.intercept_)


def test_a_refinement_is_one_reading(data):
    for n_iter in (0, 1, 2):
        stream = Stream(data.x, data.y, [250])
        ISLETRegressor(RANKS, n_iter=n_iter, tol=0.0).fit_batches(stream)
        assert stream.readings == n_iter + 2


def test_tensor_responses_stream_too():
    data = planted((6, 5, 4, 3), (2, 2, 2, 2), 200, 0.2, response=2)
    streamed = ISLETMultiRegressor((2, 2, 2, 2)).fit_batches(Stream(data.x, data.y, [70]))
    held = ISLETMultiRegressor((2, 2, 2, 2)).fit(data.x, data.y)
    np.testing.assert_allclose(streamed.coef_, held.coef_, atol=1e-10)


def test_weighted_and_rank_one_batches():
    rng = np.random.default_rng(0)
    factors = [rng.standard_normal((300, p)) for p in (6, 5, 4)]
    y, weight = rng.standard_normal(300), rng.uniform(0, 2, 300)
    held = RankOne.of(*factors)
    parts = [
        (RankOne.of(*(f[s] for f in factors)), y[s], weight[s])
        for s in (slice(100), slice(100, None))
    ]
    streamed = ISLETRegressor(RANKS).fit_batches(parts)
    np.testing.assert_allclose(streamed.coef_, ISLETRegressor(RANKS).fit(held, y, weight).coef_)


def test_memory_maps_are_read_block_by_block(data, tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.tile(data.x, (8, 1, 1, 1)))
    x = np.load(path, mmap_mode="r")
    model = ISLETRegressor(RANKS).fit(x, np.tile(data.y, 8))
    np.testing.assert_allclose(
        model.coef_, ISLETRegressor(RANKS).fit(data.x, data.y).coef_, atol=1e-9
    )


def test_a_generator_is_refused(data):
    with pytest.raises(TypeError, match="read only once"):
        ISLETRegressor(RANKS).fit_batches((data.x, data.y) for _ in range(1))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "at least one observation"),
        ([(np.ones((2, 3, 3)), np.ones(3))], "one length; got 2, 3"),
        ([(np.full((2, 3, 3), np.nan), np.ones(2))], "finite"),
        ([(np.ones((2, 3, 3)), np.ones(2), -np.ones(2))], "negative"),
        ([np.ones((2, 3, 3))], "a batch is"),
        ([(np.ones((2, 3, 3)), np.ones(2)), (np.ones((2, 3, 4)), np.ones(2))], "one shape; got"),
    ],
)
def test_bad_batches_are_refused(batches, message):
    with pytest.raises(ValueError, match=message):
        ISLETRegressor(1).fit_batches(batches)


def test_choosing_ranks_by_cross_validation_needs_arrays(data):
    with pytest.raises(ValueError, match='use "bic"'):
        ISLETRegressor("cv").fit_batches(Stream(data.x, data.y, []))
    assert ISLETRegressor("bic").fit_batches(Stream(data.x, data.y, [99])).ranks_ == RANKS


def test_observations_seen_once_come_near_those_that_are_held():
    ratios = []
    for seed in range(4):
        data = planted((9, 8, 7), RANKS, 1600, 0.2, seed=seed)
        model = ISLETRegressor(RANKS)
        for start in range(0, 1600, 200):
            model.partial_fit(data.x[start : start + 200], data.y[start : start + 200])
        held = ISLETRegressor(RANKS).fit(data.x, data.y)
        ratios.append(data.error(model.coef_) / data.error(held.coef_))
        assert model.intercept_ == pytest.approx(2.0, abs=0.05)
    assert np.mean(ratios) < 1.5


def test_the_first_part_is_a_fit_and_fit_starts_anew(data):
    first = ISLETRegressor(RANKS).partial_fit(data.x[:200], data.y[:200])
    alone = ISLETRegressor(RANKS).fit(data.x[:200], data.y[:200])
    np.testing.assert_allclose(first.coef_, alone.coef_)
    first.partial_fit(data.x[200:], data.y[200:])
    assert data.error(first.coef_) < data.error(alone.coef_)
    np.testing.assert_allclose(first.fit(data.x[:200], data.y[:200]).coef_, alone.coef_)
    with pytest.raises(ValueError, match="shape"):
        first.partial_fit(data.x, data.y).partial_fit(data.x[..., :5], data.y)


def test_memory_does_not_grow_with_the_observations():
    def peak(count: int) -> int:
        class Made:
            def __iter__(self):
                for seed in range(count):
                    rng = np.random.default_rng(seed)
                    x = rng.standard_normal((100, 12, 12, 12))
                    yield x, x[:, 0, 0, 0] + 0.1 * rng.standard_normal(100)

        tracemalloc.start()
        ISLETRegressor(1, n_iter=1).fit_batches(Made())
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    assert peak(12) < 1.2 * peak(3)
