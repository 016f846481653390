"""Recordings: the table of agents × time that every loader gives, at 10 Hz, and its lanes."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["HZ", "KINDS", "LEAST_STEP", "LONGEST", "BadRow", "Lanes", "Recording", "Track"]

HZ = 10  # frames a second of every recording
LONGEST = 14 * 86400 * HZ  # frames: what spans more has a wrong time
MOST_METRES = 5e6  # of all lanes: they are looked up by the metre
LEAST_STEP = 1e-3  # metres between two neighbouring points of every lane
KINDS = ("car", "truck", "bus", "motorcycle")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class BadRow:
    """A row, or an object, of a file that could not be taken as it was."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True)
class Track:
    """One vehicle, seen in every frame from `start` on.

    Attributes:
        id: as in the file; two tracks share it where a long gap separates them.
        kind: place in `KINDS`.
        size: length and width, metres.
        start: first frame.
        state: x, y of the centre (metres), heading (radians, unwrapped), speed (m/s); (t, 4).
    """

    id: str
    kind: int
    size: tuple[float, float]
    start: int
    state: Floats

    @property
    def end(self) -> int:
        """The frame after the last."""
        return self.start + len(self.state)


@dataclass(frozen=True)
class Lanes:
    """Centre lines in driving direction and what follows them.

    Attributes:
        lines: each (points, 2), metres.
        following: for every line the places of its successors.
    """

    lines: tuple[Floats, ...] = ()
    following: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError if a line is no line, or a successor does not exist."""
        if len(self.lines) != len(self.following):
            raise ValueError(
                f"every lane needs its successors: {len(self.lines)} != {len(self.following)}"
            )
        for line in self.lines:
            if line.ndim != 2 or line.shape[1:] != (2,) or len(line) < 2:
                raise ValueError(f"a lane needs the shape (points >= 2, 2); got {line.shape}")
        lengths = [np.hypot(*np.diff(line, axis=0).T) for line in self.lines]
        if short := [n for n, steps in enumerate(lengths) if not steps.max() >= LEAST_STEP]:
            raise ValueError(f"a lane needs some length; lanes {short[:5]} have none")
        if not (total := sum(float(steps.sum()) for steps in lengths)) <= MOST_METRES:
            raise ValueError(f"lanes need to be finite and {MOST_METRES:g} m in all; got {total:g}")
        wrong = [j for after in self.following for j in after if not 0 <= j < len(self.lines)]
        if wrong:
            raise ValueError(f"successors need to be in 0 … {len(self.lines) - 1}; got {wrong}")


@dataclass(frozen=True)
class Recording:
    """All tracks that one camera, car or simulation saw, on one clock.

    Attributes:
        name: unique among the recordings of a data set.
        group: recordings of one place; a split by place keeps them together.
        tracks: as `Track` says.
        lanes: none where the file has no map.
        bad: rows that were left out or repaired, each with its reason.
    """

    name: str
    group: str
    tracks: tuple[Track, ...]
    lanes: Lanes = field(default_factory=Lanes)
    bad: tuple[BadRow, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError if a track is no track, or the tracks span more than two weeks."""
        for track in self.tracks:
            if track.state.ndim != 2 or track.state.shape[1] != 4 or not len(track.state):
                raise ValueError(f"a track needs the shape (t >= 1, 4); got {track.state.shape}")
            if not (0 <= track.kind < len(KINDS) and min(track.size) > 0):
                raise ValueError(
                    f"a track needs a kind in 0 … {len(KINDS) - 1} and a size above 0; "
                    f"got {track.kind} and {track.size}"
                )
        if self.tracks and self.frames.stop - self.frames.start > LONGEST:
            raise ValueError(f"a recording needs to span at most {LONGEST} frames")

    @property
    def frames(self) -> range:
        """From the first frame that shows a vehicle to the last."""
        if not self.tracks:
            return range(0)
        return range(min(t.start for t in self.tracks), max(t.end for t in self.tracks))

    def present(self, frame: int) -> Iterator[Track]:
        """The tracks seen at a frame."""
        return (t for t in self.tracks if t.start <= frame < t.end)

    def rows(self) -> list[dict[str, object]]:
        """What the recording holds, for tables."""
        return [
            {
                "recording": self.name,
                "tracks": len(self.tracks),
                "seconds": len(self.frames) / HZ,
                "lanes": len(self.lanes.lines),
                "bad_rows": len(self.bad),
            }
        ]
