"""NGSIM vehicle trajectories (CSV of the US DOT): frames of 0.1 s, feet, front centres."""

import csv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from bozzetto.trajectory.cleaning import Row, tracks_of
from bozzetto.trajectory.loaders.damage import reader
from bozzetto.trajectory.recording import BadRow, Recording

__all__ = ["load_ngsim"]

_FOOT = 0.3048
_KINDS = {"1": 3, "2": 0, "3": 1}  # motorcycle, auto, truck
_NEEDED = ("Vehicle_ID", "Global_Time", "Local_X", "Local_Y", "v_Length", "v_Width", "v_Class")


@reader
def load_ngsim(path: Path) -> list[Recording]:
    """One recording for each Location of a file, or one in all where it has no such column.

    Lines that are no vehicles are in the list of the first.

    x is the distance across from the left edge and grows to the right, y the one along the road.
    The file has no headings and no lines of lanes.

    Raises:
        ValueError: if a column is missing.
    """
    rows: dict[str, list[Row]] = defaultdict(list)
    bad: list[BadRow] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.DictReader(file)
        if missing := [name for name in _NEEDED if name not in (lines.fieldnames or ())]:
            raise ValueError(f"{path}:1: NGSIM needs the columns {_NEEDED}; missing: {missing}")
        for cells in lines:
            try:
                row = _row(lines.line_num, cells)
            except (ValueError, KeyError, TypeError) as error:
                bad.append(BadRow(str(path), lines.line_num, f"no vehicle: {error}"))
            else:
                rows[cells.get("Location") or path.stem].append(row)
    first, *others = sorted(rows) or [path.stem]
    told = _recording(path, first, rows[first], bad)
    return [told, *(_recording(path, place, rows[place], []) for place in others)]


def _recording(path: Path, place: str, rows: list[Row], bad: list[BadRow]) -> Recording:
    tracks, more = tracks_of(str(path), rows, front=True)
    return Recording(place, place, tracks, bad=(*bad, *more))


def _row(line: int, cells: Mapping[str, str]) -> Row:
    length, width = float(cells["v_Length"]) * _FOOT, float(cells["v_Width"]) * _FOOT
    return Row(
        line=line,
        id=cells["Vehicle_ID"].strip(),
        time=float(cells["Global_Time"]) / 1000,
        x=float(cells["Local_X"]) * _FOOT,
        y=float(cells["Local_Y"]) * _FOOT,
        heading=float("nan"),
        size=(length, width),
        kind=_KINDS[cells["v_Class"].strip()],
    )
