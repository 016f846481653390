from dataclasses import replace

import numpy as np
import pytest

from bozzetto.trajectory.cleaning import FASTEST, GAP, Row, hermite, motion, tracks_of


def rows(times, x=lambda t: 10 * t, y=lambda t: 0.0, **changes):
    """Rows of one vehicle; line n + 1 for the n-th time."""
    nan = float("nan")
    made = [Row(n, "v", t, x(t), y(t), nan, (4.0, 2.0), 0) for n, t in enumerate(times, 1)]
    return [replace(row, **changes) for row in made]


def said(bad):
    return [(row.line, row.reason) for row in bad]


def test_five_a_second_become_ten():
    tracks, bad = tracks_of("f", rows(np.arange(11) / 5))
    assert bad == ()
    (track,) = tracks
    assert (track.start, track.end) == (0, 21)
    np.testing.assert_allclose(track.state[:, 0], np.arange(21), atol=1e-9)
    np.testing.assert_allclose(track.state[:, 3], 10.0)


def test_interpolation_is_exact_for_motion_at_constant_acceleration_inside():
    time, wanted = np.arange(12) / 5, np.arange(4, 19) / 10
    square = np.stack([time**2, -3 * time], -1)
    found = hermite(time, square, wanted)
    np.testing.assert_allclose(found, np.stack([wanted**2, -3 * wanted], -1), atol=1e-12)


def test_rows_that_are_not_finite_are_left_out_and_named():
    given = rows(np.arange(10) / 10)
    given[3] = replace(given[3], x=float("nan"))
    given[5] = replace(given[5], time=float("inf"))
    given[7] = replace(given[7], size=(0.0, 2.0))
    (track,), bad = tracks_of("f.csv", given)
    assert len(track.state) == 10
    assert [row.line for row in bad] == [4, 6, 8]
    assert str(bad[0]) == "f.csv:4: vehicle v: time or position is not finite"


def test_a_repeated_time_is_left_out_and_named():
    (track,), bad = tracks_of("f", [*rows(np.arange(10) / 10), replace(rows([0.5])[0], line=99)])
    assert len(track.state) == 10
    assert said(bad) == [(99, "vehicle v: time 0.5 again")]


def test_a_short_gap_is_filled_and_a_long_one_ends_the_track():
    short = np.append(np.arange(10), np.arange(10) + 9 + GAP * 10) / 10
    (track,), bad = tracks_of("f", rows(short))
    assert (len(track.state), bad) == (29, ())
    np.testing.assert_allclose(track.state[:, 0], np.arange(29), atol=1e-9)
    long = np.append(np.arange(10), np.arange(10) + 10 + GAP * 10) / 10
    tracks, bad = tracks_of("f", rows(long))
    assert ([t.start for t in tracks], bad) == ([0, 20], ())


def test_a_jump_is_left_out_and_named():
    given = rows(np.arange(10) / 10)
    given[4] = replace(given[4], y=FASTEST * 0.1 + 1)
    (track,), bad = tracks_of("f", given)
    np.testing.assert_allclose(track.state[:, 1], 0.0)
    assert said(bad) == [(5, "vehicle v: 9.1 m in 0.10 s")]


def test_a_row_by_itself_is_named():
    tracks, bad = tracks_of("f", rows([0.0]))
    assert (tracks, said(bad)) == ((), [(1, "vehicle v has a row by itself")])


def test_no_rows_give_no_tracks():
    assert tracks_of("f", []) == ((), ())


def test_a_heading_against_the_motion_is_corrected_and_named():
    (track,), bad = tracks_of("f", rows(np.arange(20) / 10, heading=np.pi))
    np.testing.assert_allclose(track.state[:, 2], 0.0, atol=1e-9)
    assert said(bad) == [(1, "vehicle v: heading of 20 frames is not that of its motion")]


def test_a_standing_vehicle_keeps_its_given_heading():
    (track,), bad = tracks_of("f", rows(np.arange(20) / 10, x=lambda t: 0.0, heading=1.0))
    np.testing.assert_allclose(track.state[:, 2], 1.0)
    assert bad == ()


def test_a_vehicle_that_stops_keeps_the_heading_of_its_motion():
    stop = np.array([[0.0, min(n, 30) * 0.5] for n in range(60)])
    heading, speed, wrong = motion(stop, np.full(60, np.nan))
    np.testing.assert_allclose(heading, np.pi / 2)
    assert speed[-1] == 0
    assert wrong == 0


def test_headings_are_unwrapped():
    angle = np.linspace(0, 4 * np.pi, 400)
    heading, _, _ = motion(20 * np.stack([np.cos(angle), np.sin(angle)], -1), np.full(400, np.nan))
    assert np.abs(np.diff(heading)).max() < 0.1
    assert heading[-1] - heading[0] == pytest.approx(4 * np.pi, abs=0.2)


def test_the_front_moves_half_a_length_back():
    (track,), _ = tracks_of("f", rows(np.arange(20) / 10), front=True)
    np.testing.assert_allclose(track.state[:, 0], np.arange(20) - 2.0, atol=1e-9)


def test_the_order_of_rows_does_not_matter():
    given = [*rows(np.arange(20) / 10), *rows(np.arange(5, 20) / 10, id="w")]
    mixed = [given[i] for i in np.random.default_rng(0).permutation(len(given))]
    for one, other in zip(tracks_of("f", given)[0], tracks_of("f", mixed)[0], strict=True):
        assert one.id == other.id
        np.testing.assert_array_equal(one.state, other.state)


def test_rows_between_two_frames_make_no_track_and_are_named():
    tracks, bad = tracks_of("f", rows([0.0, 0.03, 2.0, 2.1, 2.2]))
    assert [track.start for track in tracks] == [20]
    assert said(bad) == [(1, "vehicle v is there for less than two frames")]
