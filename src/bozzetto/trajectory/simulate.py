"""Junction traffic from Eclipse SUMO: a network, a demand from a seed, and the cars that result."""

import random
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bozzetto.trajectory.loaders.sumo import load_fcd
from bozzetto.trajectory.recording import HZ, Recording

__all__ = ["LAYOUTS", "Layout", "simulate"]

_ARM = 150.0  # metres from the junction to the ends


@dataclass(frozen=True)
class Layout:
    """A road network by its plain description, and the ways through it.

    Attributes:
        nodes: x, y (metres) and SUMO's type of junction.
        edges: from, to, lanes, speed limit (m/s), priority.
        routes: edges in order, and cars an hour.
    """

    nodes: Mapping[str, tuple[float, float, str]]
    edges: Mapping[str, tuple[str, str, int, float, int]]
    routes: Mapping[tuple[str, ...], int]


_ENDS = {"n": (0.0, _ARM), "e": (_ARM, 0.0), "s": (0.0, -_ARM), "w": (-_ARM, 0.0)}


def _cross(kind: str) -> Layout:
    """Four arms; with priority, the road from west to east has it."""
    priority = {"e": 2, "w": 2, "n": 1, "s": 1}
    edges = {f"{end}_in": (end, "c", 1, 13.9, priority[end]) for end in _ENDS}
    edges |= {f"{end}_out": ("c", end, 1, 13.9, priority[end]) for end in _ENDS}
    routes = {
        (f"{a}_in", f"{b}_out"): 180 if {a, b} in ({"n", "s"}, {"e", "w"}) else 60
        for a in _ENDS
        for b in _ENDS
        if a != b
    }
    ends = {end: (*xy, "priority") for end, xy in _ENDS.items()}
    return Layout(ends | {"c": (0.0, 0.0, kind)}, edges, routes)


LAYOUTS: dict[str, Layout] = {
    "priority": _cross("priority"),
    "lights": _cross("traffic_light"),
    "merge": Layout(
        nodes={
            "a": (-200.0, 0.0, "priority"),
            "ramp": (-200.0, -60.0, "priority"),
            "c": (0.0, 0.0, "priority"),
            "b": (250.0, 0.0, "priority"),
        },
        edges={
            "main": ("a", "c", 1, 22.2, 3),
            "on": ("ramp", "c", 1, 13.9, 1),
            "after": ("c", "b", 1, 22.2, 3),
        },
        routes={("main", "after"): 700, ("on", "after"): 400},
    ),
}


def simulate(
    folder: Path,
    layout: Literal["priority", "lights", "merge"] = "priority",
    *,
    seconds: int = 120,
    seed: int = 0,
) -> Recording:
    """Simulate traffic, write its files into a folder of its own, and load them.

    Args:
        folder: made if needed; the network, the demand and NAME.fcd.xml are written there.
        layout: a name of `LAYOUTS`.
        seconds: of traffic, at `HZ` steps a second.
        seed: of the demand and of how drivers differ.

    Raises:
        ImportError: if the package eclipse-sumo is missing, saying how to install it.
        ValueError: if there is no such layout, or less than a second was asked for.
        RuntimeError: if SUMO fails, with what it said.
    """
    if layout not in LAYOUTS or seconds < 1:
        raise ValueError(
            f"needs a layout of {[*LAYOUTS]} and seconds >= 1; got {layout}, {seconds}"
        )
    plan, programs = LAYOUTS[layout], _programs()
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{layout}-{seed}"
    net, routes, out = (folder / f"{name}.{end}.xml" for end in ("net", "rou", "fcd"))
    nodes, edges = folder / "plain.nod.rou.xml", folder / "plain.edg.rou.xml"
    nodes.write_text(_nodes(plan), encoding="utf-8")
    edges.write_text(_edges(plan), encoding="utf-8")
    _run(programs / "netconvert", "-n", nodes, "-e", edges, "-o", net, "--no-turnarounds")
    routes.write_text(_demand(plan, seconds, seed), encoding="utf-8")
    options = ("--step-length", str(1 / HZ), "--seed", str(seed), "--end", str(seconds))
    _run(programs / "sumo", "-n", net, "-r", routes, "--fcd-output", out, "--no-step-log", *options)
    return load_fcd(out)


def _programs() -> Path:
    try:
        import sumo  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError('simulations need SUMO: pip install "bozzetto[sumo]"') from error
    return Path(sumo.SUMO_HOME) / "bin"


def _run(program: Path, *arguments: str | Path) -> None:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{program.name} failed: {done.stderr.strip() or done.stdout.strip()}")


def _nodes(layout: Layout) -> str:
    rows = [
        f'<node id="{name}" x="{x}" y="{y}" type="{kind}"/>'
        for name, (x, y, kind) in layout.nodes.items()
    ]
    return "<nodes>" + "".join(rows) + "</nodes>"


def _edges(layout: Layout) -> str:
    rows = [
        f'<edge id="{name}" from="{a}" to="{b}" numLanes="{lanes}" speed="{speed}" '
        f'priority="{priority}"/>'
        for name, (a, b, lanes, speed, priority) in layout.edges.items()
    ]
    return "<edges>" + "".join(rows) + "</edges>"


def _demand(layout: Layout, seconds: int, seed: int) -> str:
    """Cars and some trucks that come as a Poisson process on every route."""
    draw, departures = random.Random(seed), []
    for route, hourly in layout.routes.items():
        time = draw.expovariate(hourly / 3600)
        while time < seconds:
            departures.append((time, "truck" if draw.random() < 0.1 else "car", " ".join(route)))
            time += draw.expovariate(hourly / 3600)
    types = '<vType id="car" sigma="0.5"/><vType id="truck" vClass="truck" sigma="0.5"/>'
    vehicles = [
        f'<vehicle id="{n}" type="{kind}" depart="{time:.1f}" departSpeed="max">'
        f'<route edges="{route}"/></vehicle>'
        for n, (time, kind, route) in enumerate(sorted(departures))
    ]
    return "<routes>" + types + "".join(vehicles) + "</routes>"
