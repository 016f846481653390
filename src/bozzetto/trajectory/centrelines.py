"""The lane ahead of a vehicle: the centre line it follows, continued as straight as it goes."""

import numpy as np
from numpy.typing import NDArray

from bozzetto.trajectory.recording import LEAST_STEP, Lanes

__all__ = ["AHEAD", "SPACING", "CentreLines"]

AHEAD, SPACING = 8, 7.5  # points, metres between them
_NEAR, _TURNED = 3.5, np.pi / 3  # a vehicle's own lane is at most so far, and so much turned
_METRES_A_RADIAN = 3.0  # what a turned lane costs against a far one

Floats = NDArray[np.float64]


class CentreLines:
    """Looks up the centre line ahead of a place and heading; exact within a metre of resolution."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._paths: dict[int, tuple[Floats, Floats]] = {}
        parts = [_resampled(line) for line in lanes.lines]
        self._arc = np.concatenate([arc for arc, _, _ in parts] or [np.zeros(0)])
        self._xy = np.concatenate([xy for _, xy, _ in parts] or [np.zeros((0, 2))])
        self._heading = np.concatenate([heading for _, _, heading in parts] or [np.zeros(0)])
        self._lane = np.repeat(np.arange(len(parts)), [len(arc) for arc, _, _ in parts])

    def ahead(self, xy: Floats, heading: float) -> tuple[Floats, Floats]:
        """Points every `SPACING` metres ahead, (AHEAD, 2), and which are on the map, (AHEAD,).

        Where no lane is near, or the map ends, the line goes straight on.
        """
        steps = SPACING * np.arange(1, AHEAD + 1)
        place = self._nearest(xy, heading)
        if place is None:
            return xy + steps[:, None] * _direction(heading), np.zeros(AHEAD)
        arc, line = self._path(int(self._lane[place]))
        wanted = self._arc[place] + steps
        beyond = np.maximum(wanted - arc[-1], 0.0)
        points = np.stack([np.interp(wanted, arc, line[:, k]) for k in (0, 1)], -1)
        last = line[-1] - line[-2]
        return points + beyond[:, None] * last / np.hypot(*last), (beyond == 0).astype(float)

    def _nearest(self, xy: Floats, heading: float) -> int | None:
        """The place of the best of the resampled points, if one is near and not turned away."""
        far = np.hypot(*(self._xy - xy).T)
        turned = np.abs(_wrapped(self._heading - heading))
        cost = np.where((far < _NEAR) & (turned < _TURNED), far + _METRES_A_RADIAN * turned, np.inf)
        if not len(cost) or not np.isfinite(cost.min()):
            return None
        return int(cost.argmin())

    def _path(self, lane: int) -> tuple[Floats, Floats]:
        """Arc lengths and points of a lane and its straightest continuation."""
        if lane not in self._paths:
            line, last, length, passed = self._lanes.lines[lane], lane, 0.0, {lane}
            while length < AHEAD * SPACING and self._lanes.following[last]:
                last = min(self._lanes.following[last], key=lambda j: self._bend(line, j))
                if last in passed:  # a ring of short lanes
                    break
                passed.add(last)
                added = self._lanes.lines[last]
                length += float(np.hypot(*np.diff(added, axis=0).T).sum())
                line = np.concatenate([line, added])
            line = line[np.append(True, np.hypot(*np.diff(line, axis=0).T) >= LEAST_STEP)]
            arc = np.append(0.0, np.hypot(*np.diff(line, axis=0).T).cumsum())
            self._paths[lane] = arc, line
        return self._paths[lane]

    def _bend(self, line: Floats, successor: int) -> float:
        """By how much the whole successor turns away from the end of a line."""
        after = self._lanes.lines[successor]
        before = line[-1] - line[-2]
        leaving = after[-1] - after[0]
        return abs(float(_wrapped(np.arctan2(*leaving[::-1]) - np.arctan2(*before[::-1]))))


def _resampled(line: Floats) -> tuple[Floats, Floats, Floats]:
    """Arc lengths a metre apart, points there, headings there."""
    arc = np.append(0.0, np.hypot(*np.diff(line, axis=0).T).cumsum())
    wanted = np.linspace(0.0, arc[-1], max(2, int(arc[-1]) + 1))
    xy = np.stack([np.interp(wanted, arc, line[:, k]) for k in (0, 1)], -1)
    step = np.diff(xy, axis=0)
    heading = np.arctan2(step[:, 1], step[:, 0])
    return wanted, xy, np.append(heading, heading[-1])


def _direction(heading: float) -> Floats:
    return np.array([np.cos(heading), np.sin(heading)])


def _wrapped(angle: Floats) -> Floats:
    """Into (-π, π]."""
    return (angle + np.pi) % (2 * np.pi) - np.pi
