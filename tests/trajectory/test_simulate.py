import numpy as np
import pytest
import torch

from bozzetto.trajectory import GOING, LAYOUTS, YIELDING, graph_of, scenes_of, simulate


def test_a_layout_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"layout of \['priority', 'lights', 'merge'\]"):
        simulate(tmp_path, "roundabout")  # pyright: ignore[reportArgumentType]


def test_without_sumo_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sumo", None)
    with pytest.raises(ImportError, match=r"bozzetto\[sumo\]"):
        simulate(tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_simulated_traffic_interacts(tmp_path, layout):
    pytest.importorskip("sumo")
    recording = simulate(tmp_path, layout, seconds=60, seed=1)
    assert recording.bad == ()
    assert len(recording.tracks) > 8
    modes = torch.cat([graph_of(scene).modes for scene in scenes_of([recording])])
    assert {GOING, YIELDING} <= set(modes.tolist())
    mapped = np.concatenate([scene.mapped[:, 0] for scene in scenes_of([recording])])
    assert mapped.mean() > 0.8


def test_simulated_traffic_is_the_same_from_the_same_seed(tmp_path):
    pytest.importorskip("sumo")
    runs = [
        simulate(tmp_path / str(n), "merge", seconds=20, seed=seed)
        for n, seed in enumerate([3, 3, 4])
    ]
    lengths = [[len(t.state) for t in run.tracks] for run in runs]
    assert lengths[0] == lengths[1] != lengths[2]
    for one, same in zip(runs[0].tracks, runs[1].tracks, strict=True):
        np.testing.assert_array_equal(one.state, same.state)
