"""Write the numbers of the results into the pages: python benchmarks/pages.py [PAGE ...].

A measured number stands behind a comment that says where it comes from,

    <!-- n:cifar10-resnet20.json:rows.0.accuracy:.1% -->91.7%

that is: file in benchmarks/results, path in it, format. A path is keys and indices joined by
points; `rows[method=low_rank,keep=0.25].accuracy` is of the one row with these values (_ for a
space), which stays right when rows move. The test of the pages compares; this program replaces.
Read what it changed: sentences about a number do not follow by themselves.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]

NUMBER = r"[-+−]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?%?"
MARKED = re.compile(rf"<!-- n:(\S+?\.json):(\S+):(\S*) -->({NUMBER})?")


def measured(file: str, path: str, form: str, results: Path = RESULTS) -> str:
    """The number at a path of a result file, as a page prints it."""
    value = json.loads((results / file).read_text())
    for step in re.findall(r"\[[^]]*\]|[^.[]+", path):
        if step.startswith("["):
            value = the_row(value, dict(pair.split("=") for pair in step[1:-1].split(",")))
        else:
            value = value[int(step)] if isinstance(value, list) else value[step]
    return format(value, form)


def the_row(rows: list[dict[str, object]], wanted: dict[str, str]) -> dict[str, object]:
    """The only row with these values, as text, spaces as underscores."""
    texts = [{k: str(v).replace(" ", "_") for k, v in row.items()} for row in rows]
    found = [row for row, text in zip(rows, texts, strict=True) if wanted.items() <= text.items()]
    if len(found) != 1:
        raise ValueError(f"one row needs to have {wanted}; {len(found)} of {len(rows)} have")
    return found[0]


def renewed(text: str, find: Callable[[str, str, str], str] = measured) -> str:
    """A page with every marked number as it was measured."""

    def replace(match: re.Match[str]) -> str:
        file, path, form, _ = match.groups()
        return f"<!-- n:{file}:{path}:{form} -->{re.sub('^-', '−', find(file, path, form))}"

    return MARKED.sub(replace, text)


if __name__ == "__main__":
    for page in [Path(name) for name in sys.argv[1:]] or PAGES:
        before = page.read_text()
        after = renewed(before)
        if after != before:
            page.write_text(after)
            print(page)
