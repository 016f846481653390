import numpy as np
import pytest
from drawn import crossing, scene_of, straight, track

from bozzetto.trajectory import GOING, IGNORING, MODES, UNKNOWN, YIELDING, label
from bozzetto.trajectory.labels import APART, MARGIN, modes_of_pairs
from bozzetto.trajectory.scenes import FUTURE

BOTH = np.array([[1, 0], [0, 1]])  # sources; targets: first of 0 towards 1, then of 1 towards 0


def modes(scene, edges=BOTH):
    return label(scene, edges).tolist()


def test_who_is_first_at_a_crossing_goes_and_the_other_yields():
    assert modes(crossing(first=0, second=15)) == [GOING, YIELDING]
    assert modes(crossing(first=15, second=0)) == [YIELDING, GOING]


def test_who_comes_more_than_three_seconds_later_ignores_and_is_ignored():
    slow = straight("slow", (0, -48), (0, 10))  # 4.8 s
    assert modes(scene_of(straight("fast", (-4, 0), (10, 0)), slow)) == [IGNORING, IGNORING]
    assert modes(scene_of(straight("fast", (-24, 0), (10, 0)), slow)) == [GOING, YIELDING]


def test_a_follower_yields_to_its_leader():
    leader, follower = straight("l", (15, 0), (10, 0)), straight("f", (0, 0), (10, 0))
    assert modes(scene_of(leader, follower)) == [GOING, YIELDING]


def test_opposite_lanes_are_ignored():
    east, west = straight("e", (-20, 0), (10, 0)), straight("w", (20, 3.5), (-10, 0))
    assert modes(scene_of(east, west)) == [IGNORING, IGNORING]


@pytest.mark.parametrize(
    ("beside", "mode"), [(2.0 + MARGIN - 0.05, GOING), (2.0 + MARGIN + 0.05, IGNORING)]
)
def test_discs_touch_within_the_margin(beside, mode):
    passing = straight("a", (12, 0), (10, 0)), straight("b", (0, beside), (10, 0))
    assert modes(scene_of(*passing))[0] == mode


def test_the_length_of_a_vehicle_counts():
    behind = straight("b", (0, 3.0), (0, 0.0), size=(2.0, 2.0))
    standing = track("long", lambda t: -30 + 10 * t, lambda t: 0 * t, size=(4.0, 2.0))
    assert modes(scene_of(standing, behind)) == [IGNORING, IGNORING]
    across = track("bus", lambda t: 0 * t, lambda t: 2.0 * t - 12, size=(12.0, 2.0))
    # Its front is six metres ahead of its centre, so it touches what the centre does not reach.
    still = straight("still", (0, 5.0), (0, 0.0), size=(2.0, 2.0))
    assert modes(scene_of(across, still))[0] != IGNORING


def test_both_at_once_is_unknown():
    assert modes(crossing(first=0, second=0)) == [UNKNOWN, UNKNOWN]


def test_without_a_conflict_a_missing_future_is_unknown():
    leaving = straight("a", (0, 0), (10, 0), frames=range(60))
    far = straight("b", (0, 40), (10, 0))
    assert modes(scene_of(leaving, far)) == [UNKNOWN, UNKNOWN]


def test_a_conflict_before_the_end_of_an_incomplete_future_counts():
    leaving = straight("a", (-20, 0), (10, 0), frames=range(60))
    late = straight("b", (0, -35), (0, 10))
    assert modes(scene_of(leaving, late)) == [GOING, YIELDING]


def slow_mode(touch):
    """The rule of the module's first lines, pair of times by pair of times."""
    found = [
        (min(i, j), max(i, j), GOING if i < j else YIELDING if i > j else UNKNOWN)
        for i in range(FUTURE)
        for j in range(FUTURE)
        if touch[i, j] and abs(i - j) <= APART
    ]
    if not found:
        return IGNORING
    best = min(found)[:2]
    modes = {mode for *times, mode in found if tuple(times) == best}
    return modes.pop() if len(modes) == 1 else UNKNOWN


def test_the_rule_agrees_with_its_slow_twin():
    rng = np.random.default_rng(0)
    touch = rng.random((400, FUTURE, FUTURE)) < rng.choice([0.0005, 0.003, 0.02], (400, 1, 1))
    fast = modes_of_pairs(touch)
    assert fast.tolist() == [slow_mode(t) for t in touch]
    assert set(fast.tolist()) == {IGNORING, GOING, YIELDING, UNKNOWN}


def test_the_modes_of_a_pair_mirror_each_other(fixture_recordings):
    from bozzetto.trajectory import graph_of, scenes_of

    opposite = {IGNORING: IGNORING, GOING: YIELDING, YIELDING: GOING, UNKNOWN: UNKNOWN}
    seen = set()
    for scene in list(scenes_of(fixture_recordings, every=10.0)):
        graph = graph_of(scene)
        pairs = zip(graph.source.tolist(), graph.target.tolist(), graph.modes.tolist(), strict=True)
        of = {(j, i): mode for j, i, mode in pairs}
        seen |= set(of.values())
        for (j, i), mode in of.items():
            assert of.get((i, j), opposite[mode]) == opposite[mode]
    assert seen == set(opposite)
    assert len(MODES) == 3
