"""Argoverse 2 motion-forecasting scenarios (parquet) with the map beside them (JSON)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bozzetto.parquet import read_columns
from bozzetto.trajectory.cleaning import Row, tracks_of
from bozzetto.trajectory.loaders.damage import reader
from bozzetto.trajectory.recording import HZ, BadRow, Lanes, Recording

__all__ = ["load_argoverse"]

# The files have no sizes: length and width, metres, by type.
_TYPES = {"vehicle": (0, (4.7, 1.9)), "bus": (2, (12.0, 2.6)), "motorcyclist": (3, (2.2, 0.8))}
_NEEDED = ["track_id", "object_type", "timestep", "position_x", "position_y", "heading"]
_POINTS = 20  # of a centre line that is made of both boundaries


@reader
def load_argoverse(path: Path) -> Recording:
    """The vehicles of a scenario, with the lanes of log_map_archive_*.json in its folder.

    Raises:
        ImportError: if pyarrow is missing, saying how to install it.
        ValueError: if the file is no parquet or a column is missing.
    """
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError('parquet needs pyarrow: pip install "bozzetto[data]"') from error
    try:
        names = parquet.read_schema(path).names
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: this is no parquet file: {error}") from error
    if missing := [name for name in _NEEDED if name not in names]:
        raise ValueError(f"{path}: Argoverse 2 needs the columns {_NEEDED}; missing: {missing}")
    city = ["city"] if "city" in names else []
    table = read_columns(path, _NEEDED + city).to_pydict()
    bad: list[BadRow] = []
    tracks, more = tracks_of(str(path), _rows(path, table, bad))
    maps = sorted(path.parent.glob("log_map_archive_*.json"))
    lanes = _lanes(maps[0]) if maps else Lanes()
    group = str(table["city"][0]) if city and table["city"] else path.stem
    return Recording(path.stem.removeprefix("scenario_"), group, tracks, lanes, (*bad, *more))


def _rows(path: Path, table: dict[str, list[Any]], bad: list[BadRow]) -> Iterator[Row]:
    """Row n of the table stands for line n + 1."""
    columns = (table[name] for name in _NEEDED)
    for line, (track, type_, step, x, y, heading) in enumerate(zip(*columns, strict=True), 1):
        if type_ not in _TYPES:
            continue
        if None in (track, step, x, y):
            bad.append(BadRow(str(path), line, f"vehicle {track}: time or position is missing"))
            continue
        kind, size = _TYPES[type_]
        turned = float("nan") if heading is None else float(heading)
        yield Row(line, str(track), step / HZ, float(x), float(y), turned, size, kind)


def _lanes(path: Path) -> Lanes:
    segments = json.loads(path.read_text(encoding="utf-8"))["lane_segments"]
    kept = {k: s for k, s in segments.items() if s.get("lane_type", "VEHICLE") != "BIKE"}
    place = {str(segment["id"]): n for n, segment in enumerate(kept.values())}
    lines = [_centre(segment) for segment in kept.values()]
    after = [[str(j) for j in segment["successors"]] for segment in kept.values()]
    return Lanes(tuple(lines), tuple(tuple(place[j] for j in js if j in place) for js in after))


def _centre(segment: dict[str, Any]) -> NDArray[np.float64]:
    """The given centre line, else the middle of both boundaries."""
    if segment.get("centerline"):
        return _points(segment["centerline"])
    sides = [_points(segment[f"{side}_lane_boundary"]) for side in ("left", "right")]
    return sum(map(_even, sides), np.zeros((_POINTS, 2))) / 2


def _points(points: list[dict[str, float]]) -> NDArray[np.float64]:
    return np.array([(point["x"], point["y"]) for point in points])


def _even(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points at equal distances along a line."""
    arc = np.append(0.0, np.hypot(*np.diff(line, axis=0).T).cumsum())
    wanted = np.linspace(0.0, arc[-1], _POINTS)
    return np.column_stack([np.interp(wanted, arc, line[:, k]) for k in (0, 1)])
