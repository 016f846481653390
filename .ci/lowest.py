"""Print the oldest versions that pyproject.toml admits, as constraints for pip: `make lowest`.

The tools of `dev` and `interop` are no part of what users install: theirs are the pins of
constraints.txt. So are those of packages named as arguments: CI names torch, whose oldest build
takes 5 GB.
"""

import re
import sys
import tomllib
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TOOLS = ("dev", "docs", "interop")


def named(requirement: str) -> str:
    """The name of a requirement, without extras and bounds."""
    return re.split(r"[\[<>=~! ;]", requirement)[0]


def lowest(pinned: Collection[str] = ()) -> list[str]:
    """One `name==version` for every requirement, once; the higher bound counts."""
    extras = PROJECT["optional-dependencies"]
    used = [*PROJECT["dependencies"], *(r for e in extras if e not in TOOLS for r in extras[e])]
    found: dict[str, str] = {}
    for requirement in used:
        bound = re.search(r">=([\d.]+)", requirement)
        if bound is None:
            raise ValueError(f"a requirement needs a lower bound; got {requirement!r}")
        found[named(requirement)] = max(
            bound[1], found.get(named(requirement), "0"), key=lambda v: [*map(int, v.split("."))]
        )
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for name in pinned:
        del found[name]
    tools = {named(r).lower() for e in TOOLS for r in extras[e]} - {n.lower() for n in found}
    tools.update(pinned)
    kept = [p for p in pins if "==" in p and p.split("==")[0].lower() in tools]
    return [*(f"{name}=={version}" for name, version in found.items()), *kept]


if __name__ == "__main__":
    print("\n".join(lowest(sys.argv[1:])))
