"""SUMO's floating-car output (XML) with the network beside it (*.net.xml)."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from bozzetto.trajectory.cleaning import Row, tracks_of
from bozzetto.trajectory.loaders.damage import reader
from bozzetto.trajectory.loaders.markup import Element, parse
from bozzetto.trajectory.recording import BadRow, Lanes, Recording

__all__ = ["load_fcd", "recording_of"]

_SIZES = {0: (5.0, 1.8), 1: (7.1, 2.4), 2: (12.0, 2.5), 3: (2.2, 0.9)}  # SUMO's own, metres
_KINDS = {"truck": 1, "trailer": 1, "bus": 2, "coach": 2, "motorcycle": 3, "moped": 3}
_NEEDED = ("id", "x", "y", "angle")


@reader
def load_fcd(path: Path) -> Recording:
    """The vehicles of a simulation, and the lanes of the network beside the file.

    Sizes are those of SUMO's vehicle classes, by what the vehicle's type is called, as the file has
    none; a type that no class names is a car.

    Raises:
        ValueError: if it is no such file, or the folder has several networks.
    """
    return recording_of(parse(path), path)


def recording_of(root: Element, path: Path) -> Recording:
    """The recording in a parsed output."""
    if root.tag != "fcd-export":
        raise ValueError(f"{path}:{root.line}: needs the element fcd-export; got {root.tag}")
    name = path.stem.removesuffix(".fcd")
    bad: list[BadRow] = []
    tracks, more = tracks_of(str(path), _rows(root, path, bad), front=True)
    return Recording(name, name, tracks, _lanes_beside(path, name), (*bad, *more))


def _lanes_beside(path: Path, name: str) -> Lanes:
    """Of NAME.net.xml in the same folder, else of the only network there."""
    nets = sorted(path.parent.glob("*.net.xml"))
    own = [net for net in nets if net.name == f"{name}.net.xml"] or nets
    if len(own) > 1:
        raise ValueError(f"{path.parent} needs one network or {name}.net.xml; got {len(own)}")
    return _lanes(parse(own[0])) if own else Lanes()


def _rows(root: Element, path: Path, bad: list[BadRow]) -> Iterator[Row]:
    for step in root.all("timestep"):
        for vehicle in step.all("vehicle"):
            try:
                yield _row(vehicle, float(step.attributes["time"]))
            except (KeyError, ValueError) as error:
                what = f"no vehicle with {', '.join(_NEEDED)}: {error}"
                bad.append(BadRow(str(path), vehicle.line, what))


def _row(vehicle: Element, time: float) -> Row:
    of: Mapping[str, str] = vehicle.attributes
    called = of.get("type", "").lower()
    kind = next((kind for word, kind in _KINDS.items() if word in called), 0)
    return Row(
        line=vehicle.line,
        id=of["id"],
        time=time,
        x=float(of["x"]),
        y=float(of["y"]),
        heading=np.pi / 2 - np.radians(float(of["angle"])),  # the file's is clockwise from north
        size=_SIZES[kind],
        kind=kind,
    )


def _lanes(root: Element) -> Lanes:
    """All lanes of vehicles, those inside of junctions too, joined by the network's connections."""
    lanes = [lane.attributes for edge in root.all("edge") for lane in edge.all("lane")]
    lanes = [lane for lane in lanes if lane.get("allow") != "pedestrian"]
    lines = [_line(lane["shape"]) for lane in lanes]
    place = {lane["id"]: n for n, lane in enumerate(lanes)}
    following: dict[int, set[int]] = {n: set() for n in range(len(lanes))}
    for connection in root.all("connection"):
        of = connection.attributes
        first, last = f"{of['from']}_{of['fromLane']}", f"{of['to']}_{of['toLane']}"
        after = of.get("via", last)
        if first in place and after in place:
            following[place[first]].add(place[after])
    return Lanes(tuple(lines), tuple(tuple(sorted(js)) for js in following.values()))


def _line(shape: str) -> np.ndarray:
    points = [point.split(",")[:2] for point in shape.split()]
    return np.array([[float(x), float(y)] for x, y in points])
