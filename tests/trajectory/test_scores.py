import math

import numpy as np
import pytest
import torch
from drawn import crossing, scene_of, straight, track
from torch.testing import assert_close

from bozzetto.trajectory import (
    GOING,
    IGNORING,
    UNKNOWN,
    YIELDING,
    Output,
    constant_velocity,
    graph_of,
    joined,
    score,
)
from bozzetto.trajectory.scenes import FUTURE


def logits(modes):
    return torch.eye(3)[torch.as_tensor(modes)]


def given(paths, modes=()):
    """A predictor that says what it is told."""

    def predict(graph):
        return Output(paths, logits(modes) if len(modes) else torch.zeros(len(graph.edges), 3))

    return predict


def test_errors_are_distances_and_their_means():
    graph = graph_of(crossing())
    off = torch.linspace(0.2, 5.0, FUTURE)  # as many metres as seconds
    paths = graph.future + torch.stack([0.6 * off, 0.8 * off], -1)
    found = score(given(paths), [graph], modes=False)
    for seconds in (1, 2, 3, 4, 5):
        assert found.fde(seconds) == pytest.approx(seconds, rel=1e-5)
        assert found.ade(seconds) == pytest.approx((seconds + 0.2) / 2, rel=1e-5)
    assert found.macro_f1 != found.macro_f1
    assert found.mode_rows() == []


def test_a_perfect_prediction_has_no_error():
    graph = joined([graph_of(crossing()), graph_of(crossing(9, 0))])
    found = score(given(graph.future, graph.modes), [graph])
    assert found.fde() == 0
    assert found.rows()[0]["missed"] == 0
    assert {mode: f1 for mode, (_, _, f1) in found.modes().items() if f1 == f1} == {
        "going": 1.0,
        "yielding": 1.0,
    }


def test_along_and_across_are_of_the_true_direction():
    turning = track("t", lambda t: np.minimum(10 * t, 10), lambda t: np.maximum(10 * t - 10, 0))
    graph = graph_of(scene_of(turning))  # at the end it drives to the left of its first axis
    late = given(graph.future - torch.tensor([0.0, 3.0]))
    aside = given(graph.future + torch.tensor([2.0, 0.0]))
    assert score(late, [graph], modes=False).along.tolist() == pytest.approx([-3.0])
    assert score(late, [graph], modes=False).across.tolist() == pytest.approx([0.0], abs=1e-5)
    assert score(aside, [graph], modes=False).along.tolist() == pytest.approx([0.0], abs=1e-5)
    assert score(aside, [graph], modes=False).across.tolist() == pytest.approx([-2.0])


def test_a_miss_is_more_than_two_metres_at_the_end():
    graph = graph_of(crossing())
    shift = torch.tensor([[[2.01, 0.0]], [[1.99, 0.0]]])
    assert score(given(graph.future + shift), [graph], modes=False).rows()[0]["missed"] == 0.5


def test_agents_without_a_whole_future_do_not_count():
    leaves = straight("short", (0, 20), (10, 0), frames=range(60))
    graph = graph_of(scene_of(straight("long", (0, 0), (10, 0)), leaves))
    assert score(constant_velocity, [graph], modes=False).rows()[0]["count"] == 1


def test_modes_are_counted_where_they_are_known():
    graph = joined([graph_of(crossing())] * 3)
    graph.modes[:] = torch.tensor([GOING, YIELDING, GOING, IGNORING, UNKNOWN, YIELDING])
    told = [GOING, GOING, YIELDING, IGNORING, GOING, YIELDING]
    found = score(given(graph.future, told), [graph])
    assert_close(found.confusion, torch.tensor([[1, 0, 0], [0, 1, 1], [0, 1, 1.0]]).double())
    rows = {row["mode"]: row for row in found.mode_rows()}
    assert rows["going"] == {
        "mode": "going",
        "edges": 2,
        "precision": 0.5,
        "recall": 0.5,
        "f1": 0.5,
    }
    assert found.macro_f1 == pytest.approx(2 / 3)


def test_subsets_are_who_moves_who_yields_and_who_crosses():
    stands = straight("stands", (200, 200), (0, 0))
    follower = straight("follower", (-20, 100), (10, 0))
    leader = straight("leader", (0, 100), (10, 0))
    east, north = straight("east", (-20, 0), (10, 0)), straight("north", (0, -35), (0, 10))
    graph = graph_of(scene_of(east, north, leader, follower, stands))
    found = score(constant_velocity, [graph], modes=False).subsets
    assert found["moving"].tolist() == [True, True, True, True, False]
    assert found["yielding"].tolist() == [False, True, False, True, False]
    assert found["crossing"].tolist() == [True, True, False, False, False]


def test_a_subset_without_agents_has_no_number():
    graph = graph_of(scene_of(straight("a", (0, 0), (10, 0))))
    assert math.isnan(score(constant_velocity, [graph], modes=False).fde(5, "yielding"))


def test_scores_without_agents_and_of_no_numbers_are_refused():
    graph = graph_of(crossing())
    with pytest.raises(ValueError, match="there are none"):
        score(constant_velocity, [])
    with pytest.raises(ValueError, match="finite"):
        score(given(graph.future * float("nan")), [graph])


def test_scores_draw_themselves():
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    score(constant_velocity, [graph_of(crossing())], modes=False).figure(ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "all",
        "moving",
        "yielding",
        "crossing",
    ]
