"""Loaders: one a format, all giving recordings; `load` chooses by what the file is."""

from collections.abc import Callable, Iterator
from pathlib import Path

from bozzetto.trajectory.loaders import commonroad, sumo
from bozzetto.trajectory.loaders.argoverse import load_argoverse
from bozzetto.trajectory.loaders.commonroad import load_commonroad
from bozzetto.trajectory.loaders.damage import reader
from bozzetto.trajectory.loaders.markup import parse
from bozzetto.trajectory.loaders.ngsim import load_ngsim
from bozzetto.trajectory.loaders.npz import load_npz
from bozzetto.trajectory.loaders.sumo import load_fcd
from bozzetto.trajectory.recording import Recording

__all__ = ["load", "load_argoverse", "load_commonroad", "load_fcd", "load_ngsim", "load_npz"]


@reader
def _markup(path: Path) -> Recording:
    root = parse(path)
    if root.tag == "fcd-export":
        return sumo.recording_of(root, path)
    return commonroad.recording_of(root, path)


# Each: path -> recordings.
_LOADERS: dict[str, Callable[[Path], list[Recording]]] = {
    ".npz": load_npz,
    ".csv": load_ngsim,
    ".xml": lambda path: [_markup(path)],
    ".parquet": lambda path: [load_argoverse(path)],
}


def load(path: Path) -> Iterator[Recording]:
    """The recordings of a file, or of all files in a folder and the folders in it, in order.

    Raises:
        ValueError: if a file has no format that we know, or a folder no such file.
        FileNotFoundError: if there is nothing.
    """
    if not path.exists():
        raise FileNotFoundError(f"no recordings at {path}")
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix in _LOADERS)
        files = [f for f in files if not f.name.endswith((".net.xml", ".rou.xml"))]
        if not files:
            raise ValueError(f"{path} needs files of {sorted(_LOADERS)}; it has none")
        for file in files:
            yield from load(file)
    elif path.suffix not in _LOADERS:
        raise ValueError(f"{path}: recordings come as {sorted(_LOADERS)}; got {path.suffix!r}")
    else:
        yield from _LOADERS[path.suffix](path)
