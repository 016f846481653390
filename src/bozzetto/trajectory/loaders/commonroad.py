"""CommonRoad scenarios (XML, versions 2018b and 2020a).

The file is read with the standard library: the package commonroad-io pins a protobuf of 2022, which
nothing else of this kind can live with. A test compares both where it is installed.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bozzetto.trajectory.cleaning import Row, tracks_of
from bozzetto.trajectory.loaders.damage import reader
from bozzetto.trajectory.loaders.markup import Element, parse
from bozzetto.trajectory.recording import Lanes, Recording

__all__ = ["load_commonroad", "recording_of"]

_KINDS = {"car": 0, "taxi": 0, "priorityVehicle": 0, "truck": 1, "bus": 2, "motorcycle": 3}


@reader
def load_commonroad(path: Path) -> Recording:
    """The vehicles and lanelets of a scenario; pedestrians and bicycles stay out.

    Raises:
        ValueError: if it is no CommonRoad file or has no time step.
    """
    return recording_of(parse(path), path)


def recording_of(root: Element, path: Path) -> Recording:
    """The recording in a parsed scenario."""
    if root.tag != "commonRoad":
        raise ValueError(f"{path}:{root.line}: needs the element commonRoad; got {root.tag}")
    try:
        dt = float(root.attributes["timeStepSize"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}:{root.line}: commonRoad needs a timeStepSize") from error
    tracks, bad = tracks_of(str(path), _rows(root, dt))
    name = root.attributes.get("benchmarkID", path.stem)
    group = name.removeprefix("C-").split("-")[0]
    return Recording(name, group, tracks, _lanes(root), bad)


def _rows(root: Element, dt: float) -> Iterator[Row]:
    for obstacle in root.children:
        of = obstacle.find("type")
        kind = _KINDS.get(of.text.strip()) if of is not None else None
        if obstacle.tag not in ("dynamicObstacle", "obstacle") or kind is None:
            continue
        size = (obstacle.number("shape/rectangle/length"), obstacle.number("shape/rectangle/width"))
        first, path = obstacle.find("initialState"), obstacle.find("trajectory")
        states = [] if first is None else [first]
        states += [] if path is None else list(path.all("state"))
        for state in states:
            yield Row(
                line=state.line,
                id=obstacle.attributes.get("id", ""),
                time=state.number("time/exact") * dt,
                x=state.number("position/point/x"),
                y=state.number("position/point/y"),
                heading=state.number("orientation/exact"),
                size=size,
                kind=kind,
            )


def _lanes(root: Element) -> Lanes:
    """The middles of both bounds, whose points correspond."""
    lanelets = list(root.all("lanelet"))
    place = {lane.attributes["id"]: n for n, lane in enumerate(lanelets)}
    lines, following = [], []
    for lane in lanelets:
        bounds = [_bound(lane, side) for side in ("leftBound", "rightBound")]
        points = min(map(len, bounds))
        lines.append((bounds[0][:points] + bounds[1][:points]) / 2)
        after = [successor.attributes["ref"] for successor in lane.all("successor")]
        following.append(tuple(place[ref] for ref in after if ref in place))
    return Lanes(tuple(lines), tuple(following))


def _bound(lane: Element, side: str) -> np.ndarray:
    bound = lane.find(side)
    points = [] if bound is None else list(bound.all("point"))
    return np.array([(point.number("x"), point.number("y")) for point in points])
