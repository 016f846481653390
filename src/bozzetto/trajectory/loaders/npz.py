"""Tracks in one npz file: many recordings at 10 Hz with their lanes."""

import json
from math import prod
from pathlib import Path
from zipfile import ZipFile

import numpy as np

from bozzetto.trajectory.loaders.damage import reader
from bozzetto.trajectory.recording import HZ, Lanes, Recording, Track

__all__ = ["load_npz"]

_LEAST, _FOLDS = 64 << 20, 50  # bytes that any file may unfold to; times its own size beyond


@reader
def load_npz(path: Path) -> list[Recording]:
    """All recordings of a file.

    Its arrays: `xyhv` (Σt, 4) x, y, heading, speed; `offset` (n + 1,), `rec`, `start`, `kind`, `id`
    (n,) and `size` (n, 2) of the tracks; `hz`; `meta`, JSON with name, group and lanekey of the
    recordings; `lane_xy` (Σp, 2), `lane_offset`, `lane_key`, `lane_id`, `lane_succ` and `lane_keys`
    of the lanes.

    Raises:
        ValueError: if an array is missing, the rate is not 10 Hz, or a state is not finite.
    """
    _check_sizes(path)
    with np.load(path) as file:
        data = {name: file[name] for name in file.files}
    needed = {"xyhv", "offset", "rec", "start", "size", "kind", "id", "meta", "hz"}
    if missing := sorted(needed - data.keys()):
        raise ValueError(f"{path}: tracks need the arrays {sorted(needed)}; missing: {missing}")
    if (hz := int(data["hz"])) != HZ:
        raise ValueError(f"{path}: the tracks need {HZ} frames a second; got {hz}")
    if not np.isfinite(data["xyhv"]).all():
        row = int(np.flatnonzero(~np.isfinite(data["xyhv"]).all(1))[0])
        raise ValueError(f"{path}: states need to be finite; row {row} of xyhv is not")
    tracks: dict[int, list[Track]] = {}
    for n, recording in enumerate(data["rec"].tolist()):
        tracks.setdefault(recording, []).append(_track(data, n))
    meta = json.loads(str(data["meta"]))
    return [
        Recording(m["name"], m["group"], tuple(tracks.get(r, ())), _lanes(data, m["lanekey"]))
        for r, m in enumerate(meta)
    ]


def _check_sizes(path: Path) -> None:
    """Refuse what would unfold to much more than the file holds, before memory is taken for it."""
    limit, taken = _LEAST + _FOLDS * path.stat().st_size, 0
    with ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                old = version == (1, 0)
                read = (
                    np.lib.format.read_array_header_1_0
                    if old
                    else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read(file)
            taken += max(member.file_size, prod(shape) * dtype.itemsize)
    if taken > limit:
        raise ValueError(f"{path} unfolds to {taken} bytes; at most {limit} are taken")


def _track(data: dict[str, np.ndarray], n: int) -> Track:
    first, last = data["offset"][n : n + 2]
    length, width = data["size"][n].tolist()
    return Track(
        id=str(data["id"][n]),
        kind=int(data["kind"][n]),
        size=(length, width),
        start=int(data["start"][n]),
        state=data["xyhv"][first:last].astype(np.float64),
    )


def _lanes(data: dict[str, np.ndarray], key: str) -> Lanes:
    """The lanes of one map."""
    if "lane_xy" not in data or key not in (keys := json.loads(str(data["lane_keys"]))):
        return Lanes()
    here = np.flatnonzero(data["lane_key"] == keys.index(key))
    place = {int(data["lane_id"][lane]): n for n, lane in enumerate(here)}
    offset, following = data["lane_offset"], json.loads(str(data["lane_succ"]))
    lines = [data["lane_xy"][offset[n] : offset[n + 1]].astype(np.float64) for n in here]
    after = [tuple(place[j] for j in following[n] if j in place) for n in here]
    return Lanes(tuple(lines), tuple(after))
