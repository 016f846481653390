"""Scenes: two seconds of the past and five of the future of all vehicles seen at one moment."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bozzetto.trajectory.centrelines import AHEAD, CentreLines
from bozzetto.trajectory.recording import HZ, Recording, Track

__all__ = ["FUTURE", "PAST", "RATE", "Scene", "mirrored", "scene_at", "scenes_of"]

RATE = 5  # steps a second in a scene
PAST, FUTURE = 2 * RATE + 1, 5 * RATE  # steps: -2 s … now, 0.2 s … 5 s
MOST_AGENTS = 48
LIMIT = 2048  # agents: distances of all pairs and the lanes of all edges then take about 200 MB
_STRIDE = HZ // RATE
_SEEN = RATE + 1  # an agent has been seen for at least a second
_MOVED = 2.0  # metres after which a displacement tells the heading

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Scene:
    """What is known of a moment, in metres and radians in the recording's frame.

    Attributes:
        recording, group, frame: where it is from.
        ids, kind, size: of every agent; (a,), (a,), (a, 2).
        past, seen: positions at PAST steps, (a, PAST, 2), and whether each was seen, (a, PAST);
            where it was not, the position is that of the first step that was.
        future, known: positions at FUTURE steps, (a, FUTURE, 2), and whether each is known.
        heading: now, (a,).
        lane, mapped: the centre line ahead, (a, AHEAD, 2), and whether each point is on the map.
        left_out: agents that were there too, beyond the most that a scene may have.
    """

    recording: str
    group: str
    frame: int
    ids: tuple[str, ...]
    kind: NDArray[np.int64]
    size: Floats
    past: Floats
    seen: Bools
    future: Floats
    known: Bools
    heading: Floats
    lane: Floats
    mapped: Floats
    left_out: int = 0

    @property
    def agents(self) -> int:
        """How many."""
        return len(self.ids)


def scenes_of(
    recordings: Iterable[Recording], *, every: float = 1.0, most: int = MOST_AGENTS
) -> Iterator[Scene]:
    """Scenes of each recording, one every so many seconds, where an agent has a future to learn.

    Args:
        recordings: any.
        every: seconds between scenes.
        most: agents in a scene; of more, those nearest to the middle of all stay, and the scene
            says how many were left out.

    Raises:
        ValueError: for a time below a frame, or more agents than memory is planned for.
    """
    if every * HZ < 1:
        raise ValueError(f"scenes need to be at least {1 / HZ} s apart; got {every}")
    for recording in recordings:
        lines = CentreLines(recording.lanes)
        frames = recording.frames
        for frame in range(frames.start + HZ, frames.stop - 1, round(every * HZ)):
            scene = scene_at(recording, frame, lines=lines, most=most)
            if scene is not None and scene.known.any():
                yield scene


def scene_at(
    recording: Recording,
    frame: int,
    *,
    lines: CentreLines | None = None,
    most: int = MOST_AGENTS,
) -> Scene | None:
    """The scene at a frame; None if no agent has been seen for a second.

    Raises:
        ValueError: for more agents than memory is planned for.
    """
    if not 1 <= most <= LIMIT:
        raise ValueError(f"a scene holds 1 … {LIMIT} agents; got most={most}")
    lines = CentreLines(recording.lanes) if lines is None else lines
    least = frame - (_SEEN - 1) * _STRIDE
    tracks = [t for t in recording.present(frame) if t.start <= least]
    if not tracks:
        return None
    now = np.array([t.state[frame - t.start, :2] for t in tracks])
    left_out = max(0, len(tracks) - most)
    if left_out:
        near = np.hypot(*(now - np.median(now, 0)).T).argsort(kind="stable")[:most]
        tracks = [tracks[i] for i in sorted(near)]
    back = frame + _STRIDE * np.arange(1 - PAST, 1)
    past, seen = _at(tracks, back)
    future, known = _at(tracks, frame + _STRIDE * np.arange(1, FUTURE + 1))
    given = np.array([t.state[frame - t.start, 2] for t in tracks])
    heading = _heading_now(past, given)
    ahead = [lines.ahead(xy, turn) for xy, turn in zip(past[:, -1], heading, strict=True)]
    return Scene(
        recording=recording.name,
        group=recording.group,
        frame=frame,
        ids=tuple(t.id for t in tracks),
        kind=np.array([t.kind for t in tracks]),
        size=np.array([t.size for t in tracks]),
        past=past,
        seen=seen,
        future=future,
        known=known,
        heading=heading,
        lane=np.array([points for points, _ in ahead]).reshape(-1, AHEAD, 2),
        mapped=np.array([flags for _, flags in ahead]).reshape(-1, AHEAD),
        left_out=left_out,
    )


def _at(tracks: list[Track], frames: NDArray[np.int64]) -> tuple[Floats, Bools]:
    """Positions at frames, those of the nearest end outside of a track, and which are inside."""
    places = [np.clip(frames - t.start, 0, len(t.state) - 1) for t in tracks]
    xy = np.array([t.state[place, :2] for t, place in zip(tracks, places, strict=True)])
    inside = np.array([(frames >= t.start) & (frames < t.end) for t in tracks])
    return xy, inside


def _heading_now(past: Floats, given: Floats) -> Floats:
    """From the shortest displacement that is long enough, else the recorded heading."""
    heading = given.copy()
    moved = past[:, -1:] - past[:, :-2]  # (a, PAST - 2, 2): over 0.4 … 2 s
    long = np.hypot(moved[..., 0], moved[..., 1]) > _MOVED
    for i in np.flatnonzero(long.any(1)):
        x, y = moved[i, np.flatnonzero(long[i])[-1]]
        heading[i] = np.arctan2(y, x)
    return heading


def mirrored(scene: Scene) -> Scene:
    """The scene in a mirror: y becomes -y."""
    flip = np.array([1.0, -1.0])
    return replace(
        scene,
        past=scene.past * flip,
        future=scene.future * flip,
        heading=-scene.heading,
        lane=scene.lane * flip,
    )
