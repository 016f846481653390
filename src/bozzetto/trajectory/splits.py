"""Splits: which recordings teach, which choose and which judge; never by window."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from bozzetto.trajectory.recording import HZ, Recording, Track

__all__ = ["Split", "cut", "matching", "split"]


@dataclass(frozen=True)
class Split:
    """Recordings in three parts that share none.

    Attributes:
        train, val, test: to teach, to choose by, to judge.
    """

    train: tuple[Recording, ...]
    val: tuple[Recording, ...]
    test: tuple[Recording, ...]


def cut(recordings: Iterable[Recording], *, seconds: float) -> list[Recording]:
    """Recordings longer than `seconds` in parts of that length, named NAME/0, NAME/1 and so on.

    Tracks end where a part ends, so that no moment of a vehicle is in two parts. A rest that is
    shorter than half of `seconds` goes with the part before it.
    """
    if seconds * HZ < 1:
        raise ValueError(f"parts need to last at least {1 / HZ} s; got {seconds}")
    made: list[Recording] = []
    for recording in recordings:
        first, length = recording.frames.start, round(seconds * HZ)
        count = max(1, round(len(recording.frames) / length))
        if count == 1:
            made.append(recording)
            continue
        bounds = [first + n * length for n in range(count)] + [recording.frames.stop]
        for n in range(count):
            pieces = (_piece(track, bounds[n], bounds[n + 1]) for track in recording.tracks)
            tracks = tuple(piece for piece in pieces if piece is not None)
            bad = recording.bad if n == 0 else ()
            made.append(replace(recording, name=f"{recording.name}/{n}", tracks=tracks, bad=bad))
    return made


def _piece(track: Track, first: int, last: int) -> Track | None:
    """What a track shows from a frame to before another, if that is two frames or more."""
    low, high = max(first, track.start), min(last, track.end)
    if high - low < 2:
        return None
    return replace(track, start=low, state=track.state[low - track.start : high - track.start])


def matching(recordings: Iterable[Recording], patterns: Sequence[str]) -> list[Recording]:
    """The recordings whose names match one of the patterns, which are those of file names.

    Raises:
        ValueError: if a pattern matches none.
    """
    found = list(recordings)
    for pattern in patterns:
        if not any(fnmatchcase(recording.name, pattern) for recording in found):
            names = [recording.name for recording in found]
            raise ValueError(f"no recording matches {pattern!r}; there are {names}")
    return [r for r in found if any(fnmatchcase(r.name, pattern) for pattern in patterns)]


def split(
    recordings: Iterable[Recording], *, test: Sequence[str], val: Sequence[str] = ()
) -> Split:
    """The recordings that match the patterns of `test`, those of `val`, and the others.

    A recording that matches both is for the test. A pattern is one of file names ("MONA-*/[67]").

    Raises:
        ValueError: if two recordings have one name, a pattern matches none, or the test or the
            training is left without any.
    """
    found = list(recordings)
    names = [recording.name for recording in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"recordings need names of their own; twice: {twice}")
    judge, choose = matching(found, test), matching(found, val)
    choose = [r for r in choose if r.name not in {j.name for j in judge}]
    taken = {r.name for r in (*judge, *choose)}
    teach = [r for r in found if r.name not in taken]
    if not teach or not judge:
        raise ValueError(f"a split needs recordings to teach and to judge; got {test=}, {val=}")
    return Split(tuple(teach), tuple(choose), tuple(judge))
