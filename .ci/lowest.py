"""Print the oldest versions that pyproject.toml admits, as constraints for pip: `make lowest`.

The tools of `dev` are no part of what users install: theirs are the pins of constraints.txt.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TOOLS = ("dev", "docs")


def named(requirement: str) -> str:
    """The name of a requirement, without extras and bounds."""
    return re.split(r"[\[<>=~! ;]", requirement)[0]


def lowest() -> list[str]:
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
    tools = {named(r).lower() for e in TOOLS for r in extras[e]} - {n.lower() for n in found}
    kept = [p for p in pins if "==" in p and p.split("==")[0].lower() in tools]
    return [*(f"{name}=={version}" for name, version in found.items()), *kept]


if __name__ == "__main__":
    print("\n".join(lowest()))
