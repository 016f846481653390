"""Rows of a study in a file of JSON lines, which grows as they are made and survives a kill."""

import json
from pathlib import Path
from typing import Any


def read(path: Path) -> list[Any]:
    """The rows that are whole; one that a kill cut is not there, and is made again."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def add(path: Path, row: Any) -> None:
    """A row more, on a line of its own even where the one before was cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cut = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * cut + json.dumps(row) + "\n")
