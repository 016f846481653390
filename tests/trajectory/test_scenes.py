import numpy as np
import pytest
from drawn import NOW, recorded, scene_of, straight, track

from bozzetto.trajectory import Lanes, cut, matching, mirrored, scene_at, scenes_of, split
from bozzetto.trajectory.centrelines import AHEAD, SPACING, CentreLines
from bozzetto.trajectory.scenes import FUTURE, LIMIT, PAST


def line(*points):
    return np.array(points, dtype=float)


def test_a_scene_has_two_seconds_of_past_and_five_of_future():
    scene = scene_of(straight("a", (0, 0), (10, 0)))
    np.testing.assert_allclose(scene.past[0, :, 0], np.linspace(-20, 0, PAST))
    np.testing.assert_allclose(scene.future[0, :, 0], np.linspace(2, 50, FUTURE))
    assert scene.seen.all()
    assert scene.known.all()


def test_an_agent_that_enters_late_waits_a_second_and_what_it_lacks_is_flagged():
    first = straight("first", (0, 0), (10, 0))
    young = straight("young", (0, 9), (10, 0), frames=range(NOW - 9, 71))
    late = straight("late", (0, 5), (10, 0), frames=range(NOW - 10, 71))
    scene = scene_of(first, young, late)
    assert scene.ids == ("first", "late")
    assert scene.seen[1].tolist() == [False] * 5 + [True] * 6
    np.testing.assert_allclose(scene.past[1, :6, 0], -10)


def test_an_agent_that_leaves_has_a_future_up_to_there():
    scene = scene_of(straight("a", (0, 0), (10, 0), frames=range(NOW + 11)))
    assert scene.known[0].tolist() == [True] * 5 + [False] * 20


def test_a_moment_without_agents_has_no_scene():
    assert scene_at(recorded(straight("a", (0, 0), (1, 0))), 500) is None
    assert list(scenes_of([recorded()])) == []


def test_the_past_tells_the_heading_and_never_the_future():
    turning = track("t", lambda t: np.minimum(10 * t, 0), lambda t: np.maximum(10 * t, 0))
    assert scene_of(turning).heading[0] == pytest.approx(0.0)


def test_a_slow_agent_has_the_heading_that_was_recorded():
    slow = track("s", lambda t: 0.001 * t, lambda t: 0.001 * t)
    assert scene_of(slow).heading[0] == pytest.approx(np.pi / 4)


def test_of_many_agents_those_in_the_middle_stay():
    tracks = [straight(str(n), (10.0 * n, 0), (1, 0)) for n in range(9)]
    scene = scene_at(recorded(*tracks), NOW, most=3)
    assert scene is not None
    assert (scene.ids, scene.left_out) == (("3", "4", "5"), 6)


@pytest.mark.parametrize("most", [0, LIMIT + 1])
def test_more_agents_than_memory_allows_are_refused_with_the_limit(most):
    with pytest.raises(ValueError, match=f"holds 1 … {LIMIT} agents; got most={most}"):
        list(scenes_of([recorded(straight("a", (0, 0), (1, 0)))], most=most))


def test_scenes_are_as_far_apart_as_asked():
    recording = recorded(straight("a", (0, 0), (10, 0)))
    assert [s.frame for s in scenes_of([recording], every=2.0)] == [10, 30, 50]
    with pytest.raises(ValueError, match=r"at least 0\.1 s apart"):
        next(scenes_of([recording], every=0.01))


def test_the_mirror_of_a_mirror_is_the_scene():
    scene = scene_of(straight("a", (0, 3), (10, 2)), straight("b", (9, 0), (0, 5)))
    twice = mirrored(mirrored(scene))
    np.testing.assert_array_equal(twice.past, scene.past)
    np.testing.assert_array_equal(twice.heading, scene.heading)
    np.testing.assert_array_equal(mirrored(scene).future[..., 1], -scene.future[..., 1])


STEPS = SPACING * np.arange(1, AHEAD + 1)


def test_the_lane_ahead_is_followed_and_then_goes_straight_on():
    lanes = Lanes((line((-50, 0), (20, 0)), line((20, 0), (20, 30))), ((1,), ()))
    ahead, mapped = CentreLines(lanes).ahead(np.array([0.0, 1.0]), 0.1)
    np.testing.assert_allclose(ahead[:, 0], np.minimum(STEPS, 20))
    np.testing.assert_allclose(ahead[:, 1], np.maximum(STEPS - 20, 0), atol=1e-9)
    assert mapped.tolist() == [float(s <= 50) for s in STEPS]


def test_the_straightest_continuation_is_taken():
    lanes = Lanes(
        (line((-9, 0), (9, 0)), line((9, 0), (20, 11)), line((9, 0), (90, 1))), ((1, 2), (), ())
    )
    ahead, _ = CentreLines(lanes).ahead(np.zeros(2), 0.0)
    assert np.abs(ahead[:, 1]).max() < 1


@pytest.mark.parametrize(
    "lanes", [Lanes(), Lanes((line((0, 9), (50, 9)), line((50, 0), (-50, 0))), ((), ()))]
)
def test_without_a_lane_of_its_own_a_vehicle_goes_straight(lanes):
    ahead, mapped = CentreLines(lanes).ahead(np.zeros(2), 0.0)
    np.testing.assert_allclose(ahead, np.stack([STEPS, 0 * STEPS], -1))
    assert not mapped.any()


def test_a_ring_of_lanes_ends():
    ring = Lanes((line((0, 0), (1, 0)), line((1, 0), (0, 0))), ((1,), (0,)))
    assert np.isfinite(CentreLines(ring).ahead(np.zeros(2), 0.0)[0]).all()


@pytest.mark.parametrize(
    ("lines", "following", "what"),
    [
        ((line((0, 0), (1, 0)),), ((3,),), r"successors need to be in 0 … 0; got \[3\]"),
        ((line((0, 0)),), ((),), r"shape \(points >= 2, 2\); got \(1, 2\)"),
        ((), ((),), "every lane needs its successors"),
    ],
)
def test_lanes_that_are_none_are_refused(lines, following, what):
    with pytest.raises(ValueError, match=what):
        Lanes(lines, following)


def test_parts_share_no_moment_of_a_vehicle():
    recording = recorded(straight("a", (0, 0), (10, 0), frames=range(100)), name="long")
    parts = cut([recording], seconds=3.0)
    assert [part.name for part in parts] == ["long/0", "long/1", "long/2"]
    frames = [range(t.start, t.end) for part in parts for t in part.tracks]
    assert frames == [range(30), range(30, 60), range(60, 100)]
    states = np.concatenate([t.state for part in parts for t in part.tracks])
    np.testing.assert_array_equal(states, recording.tracks[0].state)
    assert cut([recording], seconds=8.0) == [recording]


def test_a_split_is_by_recording():
    found = [
        recorded(straight("a", (0, 0), (1, 0)), name=name) for name in ("x/0", "x/1", "y/0", "y/1")
    ]
    made = split(found, test=["*/1"], val=["x/*"])
    names = [[r.name for r in part] for part in (made.train, made.val, made.test)]
    assert names == [["y/0"], ["x/0"], ["x/1", "y/1"]]


def test_a_split_that_makes_no_sense_is_refused():
    found = [recorded(name="x"), recorded(name="y")]
    with pytest.raises(ValueError, match=r"no recording matches 'z\*'; there are \['x', 'y'\]"):
        matching(found, ["z*"])
    with pytest.raises(ValueError, match="needs recordings to teach and to judge"):
        split(found, test=["*"])
    with pytest.raises(ValueError, match=r"names of their own; twice: \['x'\]"):
        split([*found, recorded(name="x")], test=["y"])
