"""Dask shards: equal to one machine, and a killed worker costs nothing but time."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from planted import planted

from bozzetto.regress import DaskShards, ISLETMultiRegressor, ISLETRegressor, SparseISLETRegressor

dask = pytest.importorskip("dask", reason="the extra dask is not installed")
SIZE = 100


def load(part: int, marker: str = ""):
    """A shard, made anew by whoever needs it; the first worker to read shard 2 dies of it."""
    data = planted((6, 5, 4), (2, 2, 2), 500, 0.1)
    if marker and part == 2 and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    rows = slice(part * SIZE, (part + 1) * SIZE)
    return data.x[rows], data.y[rows]


@pytest.fixture(scope="module")
def data():
    return planted((6, 5, 4), (2, 2, 2), 500, 0.1)


@pytest.mark.parametrize("model", [ISLETRegressor(2), SparseISLETRegressor(2)], ids=repr)
def test_shards_give_what_one_machine_gives(data, model):
    with dask.config.set(scheduler="synchronous"):
        shards = DaskShards(tuple(dask.delayed(load)(part) for part in range(5)))
        coef = model.fit_batches(shards).coef_
    np.testing.assert_allclose(coef, model.fit(data.x, data.y).coef_, atol=1e-10)


def test_dask_arrays_may_be_cut_along_any_axis(data):
    array = pytest.importorskip("dask.array")
    x = array.from_array(data.x, chunks=(130, 6, 2, 4))
    y = array.from_array(np.stack([data.y, -data.y], axis=1), chunks=(90, 1))
    with dask.config.set(scheduler="synchronous"):
        model = ISLETMultiRegressor((2, 2, 2, 1)).fit_batches(DaskShards.of_arrays(x, y))
    alone = ISLETMultiRegressor((2, 2, 2, 1)).fit(data.x, np.stack([data.y, -data.y], axis=1))
    np.testing.assert_allclose(model.coef_, alone.coef_, atol=1e-10)


def test_arrays_of_different_lengths_are_refused(data):
    array = pytest.importorskip("dask.array")
    x, y = array.from_array(data.x), array.from_array(data.y[:-1])
    with pytest.raises(ValueError, match="one length is needed"):
        DaskShards.of_arrays(x, y)


def test_shards_of_different_shapes_are_refused(data):
    other = dask.delayed((data.x[:, :5], data.y))
    shards = DaskShards((dask.delayed(load)(0), other))
    with (
        dask.config.set(scheduler="synchronous"),
        pytest.raises(ValueError, match="one shape; got"),
    ):
        ISLETRegressor(2).fit_batches(shards)


def test_no_shard_is_refused():
    with pytest.raises(ValueError, match="at least one shard"):
        ISLETRegressor(2).fit_batches(DaskShards(()))


@pytest.mark.filterwarnings("default")  # of the cluster's own start and end
def test_a_killed_worker_changes_nothing(data, tmp_path):
    distributed = pytest.importorskip("distributed")
    marker = tmp_path / "killed"
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.run(lambda path: __import__("sys").path.insert(0, path), str(Path(__file__).parent))
        shards = [dask.delayed(load)(part, str(marker)) for part in range(5)]
        coef = ISLETRegressor(2).fit_batches(DaskShards(tuple(shards))).coef_
    assert marker.exists()
    np.testing.assert_allclose(coef, ISLETRegressor(2).fit(data.x, data.y).coef_, atol=1e-10)
