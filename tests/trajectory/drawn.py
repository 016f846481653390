"""Scenes and recordings drawn by hand, whose right answers are known."""

import numpy as np

from bozzetto.trajectory import Lanes, Recording, Track, scene_at

NOW = 20  # the frame of drawn scenes: two seconds after the first


def track(name, x, y, *, frames=range(71), size=(4.0, 2.0), kind=0):
    """A track whose place in frame f is (x(f), y(f)), with seconds since NOW as the argument."""
    seconds = (np.array(frames) - NOW) / 10
    xy = np.stack(
        [np.broadcast_to(x(seconds), seconds.shape), np.broadcast_to(y(seconds), seconds.shape)], -1
    )
    moved = np.gradient(xy, 0.1, axis=0)
    heading = np.unwrap(np.arctan2(moved[:, 1], moved[:, 0]))
    state = np.column_stack([xy.astype(float), heading, np.hypot(*moved.T)])
    return Track(name, kind, size, frames[0], state)


def straight(name, start, velocity, **options):
    """A track at constant velocity that is at `start` in frame NOW."""
    return track(
        name,
        lambda t: start[0] + velocity[0] * t,
        lambda t: start[1] + velocity[1] * t,
        **options,
    )


def recorded(*tracks, lanes=None, name="drawn"):
    return Recording(name, name, tracks, lanes or Lanes())


def scene_of(*tracks, lanes=None):
    found = scene_at(recorded(*tracks, lanes=lanes), NOW)
    assert found is not None
    return found


def crossing(first=0.0, second=15.0):
    """A vehicle eastwards and one northwards that are `first` and `second` metres before (0, 0) in
    two seconds' time, both at 10 m/s.
    """
    return scene_of(
        straight("east", (-20 - first, 0), (10, 0)), straight("north", (0, -20 - second), (0, 10))
    )
