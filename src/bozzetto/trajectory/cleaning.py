"""From rows as files have them to tracks at 10 Hz: duplicates, gaps, jumps, wrong headings."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from bozzetto.trajectory.recording import HZ, LONGEST, BadRow, Track

__all__ = ["Row", "tracks_of"]

GAP = 1.0  # seconds without a row that are filled in; after a longer gap another track begins
FARTHEST = 1e8  # metres from the origin: the earth is smaller
FASTEST = 80.0  # m/s: a row that needs more is taken for an error
_MOVING = 1.0  # m/s, below which a displacement tells no heading
_WRONG = np.pi / 4  # a given heading that differs by more from the motion is wrong
_SPAN = 2  # frames on either side over which the motion is measured

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One vehicle at one time, as a file says.

    Attributes:
        line: of the file, for errors.
        id: of the vehicle.
        time: seconds.
        x, y: of the centre, metres.
        heading: radians; NaN where the file has none.
        size: length and width, metres.
        kind: place in `KINDS`.
    """

    line: int
    id: str
    time: float
    x: float
    y: float
    heading: float
    size: tuple[float, float]
    kind: int


def tracks_of(
    file: str, rows: Iterable[Row], *, front: bool = False
) -> tuple[tuple[Track, ...], tuple[BadRow, ...]]:
    """Tracks on one clock, whose frame 0 is the first good row, and what was wrong.

    Rows may come in any order. Not finite, repeated and impossibly far rows are left out; gaps up
    to `GAP` are filled by cubic Hermite interpolation; headings follow the motion where there is
    some. Each of these but the filled gaps is in the list of bad rows. `front` says that positions
    are those of the front's centre: they move half a length back.
    """
    bad: list[BadRow] = []
    finite = list(_finite(file, rows, bad))
    good = sorted(_together(file, finite, bad), key=lambda row: (row.id, row.time))
    if not good:
        return (), tuple(bad)
    zero = min(row.time for row in good)
    tracks: list[Track] = []
    for _, group in groupby(good, key=lambda row: row.id):
        for run in _runs(_possible(file, group, bad)):
            first, last = _frames(run, zero)
            if len(run) == 1:
                bad.append(BadRow(file, run[0].line, f"vehicle {run[0].id} has a row by itself"))
            elif last <= first:
                what = f"vehicle {run[0].id} is there for less than two frames"
                bad.append(BadRow(file, run[0].line, what))
            else:
                tracks.append(_track(file, run, zero, bad, front=front))
    return tuple(tracks), tuple(sorted(bad, key=lambda b: b.line))


def _frames(run: list[Row], zero: float) -> tuple[int, int]:
    """The first and the last frame of a run."""
    ends = [(row.time - zero) * HZ for row in (run[0], run[-1])]
    return int(np.ceil(ends[0] - 1e-3)), int(np.floor(ends[1] + 1e-3))


def _finite(file: str, rows: Iterable[Row], bad: list[BadRow]) -> Iterator[Row]:
    for row in rows:
        if not np.isfinite([row.time, row.x, row.y]).all():
            bad.append(BadRow(file, row.line, f"vehicle {row.id}: time or position is not finite"))
        elif max(abs(row.x), abs(row.y)) > FARTHEST:
            bad.append(BadRow(file, row.line, f"vehicle {row.id}: {row.x}, {row.y} is off earth"))
        elif not all(0 < side < 1000 for side in row.size):
            bad.append(BadRow(file, row.line, f"vehicle {row.id}: size {row.size} is no vehicle's"))
        else:
            yield row


def _together(file: str, rows: list[Row], bad: list[BadRow]) -> Iterator[Row]:
    """The rows within a week of the middle one."""
    middle = float(np.median([row.time for row in rows])) if rows else 0.0
    for row in rows:
        if abs(row.time - middle) * HZ < LONGEST // 2:
            yield row
        else:
            bad.append(BadRow(file, row.line, f"vehicle {row.id}: time {row.time} is far away"))


def _possible(file: str, rows: Iterable[Row], bad: list[BadRow]) -> Iterator[Row]:
    """The rows of one vehicle, by time, without repeated times and jumps."""
    last: Row | None = None
    for row in rows:
        if last is not None:
            passed = row.time - last.time
            metres = float(np.hypot(row.x - last.x, row.y - last.y))
            if passed < 1e-6:
                bad.append(BadRow(file, row.line, f"vehicle {row.id}: time {row.time} again"))
                continue
            if metres > FASTEST * passed and passed <= GAP:
                what = f"vehicle {row.id}: {metres:.1f} m in {passed:.2f} s"
                bad.append(BadRow(file, row.line, what))
                continue
        last = row
        yield row


def _runs(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows without a long gap."""
    run: list[Row] = []
    for row in rows:
        if run and row.time - run[-1].time > GAP + 1e-6:
            yield run
            run = []
        run.append(row)
    if run:
        yield run


def _track(file: str, run: list[Row], zero: float, bad: list[BadRow], *, front: bool) -> Track:
    time, (first, last) = np.array([row.time - zero for row in run]), _frames(run, zero)
    clock = np.arange(first, last + 1) / HZ
    xy = hermite(time, np.array([(row.x, row.y) for row in run]), clock)
    given = _carried(time, np.array([row.heading for row in run]), clock)
    heading, speed, wrong = motion(xy, given)
    if wrong:
        what = f"vehicle {run[0].id}: heading of {wrong} frames is not that of its motion"
        bad.append(BadRow(file, run[0].line, what))
    if front:
        xy = xy - run[0].size[0] / 2 * np.column_stack([np.cos(heading), np.sin(heading)])
    return Track(
        id=run[0].id,
        kind=run[0].kind,
        size=run[0].size,
        start=first,
        state=np.column_stack([xy, heading, speed]),
    )


def hermite(time: Floats, values: Floats, wanted: Floats) -> Floats:
    """Cubic Hermite interpolation with slopes of central differences; (t, c) -> (w, c)."""
    slope = np.gradient(values, time, axis=0)
    place = np.clip(np.searchsorted(time, wanted, side="right") - 1, 0, len(time) - 2)
    width = (time[place + 1] - time[place])[:, None]
    s = np.clip((wanted - time[place])[:, None] / width, 0.0, 1.0)
    low = (1 + 2 * s) * (1 - s) ** 2 * values[place] + s * (1 - s) ** 2 * width * slope[place]
    after = place + 1
    return low + s**2 * (3 - 2 * s) * values[after] + s**2 * (s - 1) * width * slope[after]


def _carried(time: Floats, heading: Floats, wanted: Floats) -> Floats:
    """The last given heading at each wanted time; NaN before the first."""
    place = np.clip(np.searchsorted(time, wanted + 1e-6, side="right") - 1, 0, len(time) - 1)
    return heading[place]


def motion(xy: Floats, given: Floats) -> tuple[Floats, Floats, int]:
    """Heading (unwrapped) and speed of positions at 10 Hz, and how many given headings are wrong.

    Where a vehicle stands, the heading is the last one in motion, else the given one, else the
    first one in motion; zero for a vehicle without any.
    """
    frames = np.arange(len(xy))
    after, before = np.minimum(frames + _SPAN, len(xy) - 1), np.maximum(frames - _SPAN, 0)
    moved = (xy[after] - xy[before]) * (HZ / (after - before))[:, None]
    speed = np.hypot(moved[:, 0], moved[:, 1])
    moving = speed > _MOVING
    angle = np.arctan2(moved[:, 1], moved[:, 0])
    off = np.abs((angle - given + np.pi) % (2 * np.pi) - np.pi)
    wrong = int((moving & (off > _WRONG)).sum())  # NaN compares false
    last = np.maximum.accumulate(np.where(moving, frames, -1))
    first = angle[moving.argmax()] if moving.any() else 0.0
    fallback = np.where(np.isfinite(given), given, first)
    heading = np.where(last >= 0, angle[last], fallback)
    return np.unwrap(heading), speed, wrong
