"""The pages tell the truth: their Python runs, their numbers are the results', the names are there.

`benchmarks/pages.py` says how a number is marked. In a table of the README every cell that is a
plain number has a mark.
"""

import importlib
import importlib.util
import inspect
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from bozzetto.methods import METHODS
from bozzetto.sketch import FAMILIES

ROOT = Path(__file__).resolve().parents[1]


def _pages() -> Any:
    spec = importlib.util.spec_from_file_location("pages", ROOT / "benchmarks" / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages = _pages()
RESULTS, README, PAGES, MARKED = pages.RESULTS, pages.README, pages.PAGES, pages.MARKED
PLAIN_CELL = re.compile(rf"\W*{pages.NUMBER}\s*(?:[×%]|[kKMG]?B|[mµ]?s|dB|points?)?\W*")
FENCE = re.compile(
    r"^[ \t]*(```|~~~)[ \t]*(?:py|python)\b([^\n]*)\n(.*?)^[ \t]*\1", re.MULTILINE | re.DOTALL
)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def read(page: Path) -> str:
    return page.read_text()


def python_blocks(text: str) -> list[tuple[str, str]]:
    """(what stands behind ```python, the code on the lines it has in the page) for each block."""
    return [
        (match[2].strip(), "\n" * text.count("\n", 0, match.start(3)) + textwrap.dedent(match[3]))
        for match in FENCE.finditer(text)
    ]


def run_blocks(text: str, name: str) -> None:
    space: dict[str, object] = {"__name__": "__main__"}
    for options, code in python_blocks(text):
        assert not options, f"{name}: every block runs, so ```python takes no option: {options}"
        exec(compile(code, name, "exec"), space)


def wrong_numbers(text: str, results: Path) -> list[str]:
    """Marked numbers that differ from the result they name."""
    found = MARKED.findall(text)
    wrong = ["a comment is not n:FILE:PATH:FORMAT"] if len(found) < text.count("<!-- n") else []
    for file, path, form, printed in found:
        measured = pages.measured(file, path, form, results)
        if printed.replace("−", "-") != measured:
            wrong.append(f"{file}:{path}: the page says {printed!r}, the result {measured!r}")
    return wrong


def unmarked_cells(text: str) -> list[str]:
    """Cells of tables that are plain numbers and do not say where they come from."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [cell for row in rows for cell in row if PLAIN_CELL.fullmatch(MARKED.sub("", cell))]


@every_page
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    with torch.random.fork_rng():
        run_blocks(read(page), page.name)


def test_the_readme_shows_some_python():
    assert python_blocks(read(README))


def test_code_that_fails_is_seen_with_its_line():
    with pytest.raises(ZeroDivisionError) as caught:
        run_blocks("words\n```python\nx = 0\n```\n\n```python\n1 / x\n```\n", "page.md")
    assert caught.traceback[-1].lineno == 6  # counted from 0


def test_a_block_that_asks_not_to_be_run_is_refused():
    with pytest.raises(AssertionError, match="notest"):
        run_blocks("```python notest\n1 / 0\n```\n", "page.md")


@every_page
def test_the_numbers_of_a_page_come_from_the_results(page: Path):
    assert wrong_numbers(read(page), RESULTS) == []


def test_the_tables_of_the_readme_say_where_their_numbers_come_from():
    assert unmarked_cells(read(README)) == []


def test_the_readme_points_at_files_that_exist():
    targets = re.findall(r"\]\(([^)]+)\)", read(README))
    assert targets
    assert [name for name in targets if not (ROOT / name).is_file()] == []


def test_no_mark_of_the_readme_begins_a_line():
    """Markdown would end the paragraph there; the other pages are built without the marks."""
    assert re.findall(r"^\s*<!-- n:", read(README), re.MULTILINE) == []


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("| <!-- n:a.json:rows.1.acc:.1% -->91.7% |", True),
        ("| <!-- n:a.json:rows.1.acc:.1% -->91.8% |", False),
        ("<!-- n:a.json:rows.1.acc:.4f -->0.9173, as asked", True),
        ("<!-- n:a.json:change:.2f -->−1.50 points", True),
        ("<!-- n:a.json:change:.2f -->1.50 points", False),
        ("<!-- n:a.json:images:, -->10,000 images, 3 seeds", True),
        ("<!-- n:a.json:images: -->no number", False),
        ("<!-- n: a.json:images:, -->10,000 images", False),
        ("<!-- n:a.json:rows[way=low_rank,keep=0.25].acc:.1% -->91.7%", True),
        ("<!-- n:a.json:rows[way=low_rank,keep=0.25].acc:.1% -->91.8%", False),
    ],
)
def test_a_wrong_number_is_seen(text: str, right: bool, tmp_path: Path):
    row = {"way": "low rank", "keep": 0.25, "acc": 0.9173}
    results = {"rows": [{}, row], "change": -1.5, "images": 10_000}
    (tmp_path / "a.json").write_text(json.dumps(results))
    assert (wrong_numbers(text, tmp_path) == []) == right


def test_a_number_of_nowhere_is_seen():
    table = "| network | kept |\n|---|---|\n| ResNet-20 | **25.0 %** |\n| <!-- n:a.json:b: -->1 | |"
    assert unmarked_cells(table) == [" **25.0 %** "]
    assert unmarked_cells("| <!-- n:a.json:b: -->1 / 2 |") != []


def test_a_row_has_to_be_the_only_one():
    rows = [{"keep": 0.5, "seed": 0}, {"keep": 0.5, "seed": 1}]
    assert pages.the_row(rows, {"keep": "0.5", "seed": "1"}) == rows[1]
    with pytest.raises(ValueError, match="2 of 2"):
        pages.the_row(rows, {"keep": "0.5"})


def test_numbers_are_renewed_in_place():
    find = {("a.json", "x", ".1f"): "-2.0", ("a.json", "y", ","): "1,234"}
    page = "A <!-- n:a.json:x:.1f -->1.0 and <!-- n:a.json:y:, -->9, and 3.5."
    renewed = pages.renewed(page, lambda *mark: find[mark])
    assert renewed == "A <!-- n:a.json:x:.1f -->−2.0 and <!-- n:a.json:y:, -->1,234, and 3.5."


PUBLIC = [
    "bozzetto", "bozzetto.nn", "bozzetto.train", "bozzetto.optim", "bozzetto.methods",
    "bozzetto.testing", "bozzetto.report", "bozzetto.regress", "bozzetto.tangent",
    "bozzetto.tangent.fast", "bozzetto.trajectory", "bozzetto.analysis.certificate",
    "bozzetto.analysis.crash", "bozzetto.analysis.front", "bozzetto.analysis.kernel",
    "bozzetto.analysis.latency", "bozzetto.analysis.spectrum", "bozzetto.analysis.unbiased",
]  # fmt: skip
DIRECTIVE = re.compile(r"^\.\. automodule:: (\S+)\n((?:   :.*\n)*)", re.MULTILINE)


def described() -> set[int]:
    """The objects that the reference's directives describe, by identity."""
    found = set()
    for name, options in DIRECTIVE.findall(read(ROOT / "docs" / "reference.md")):
        module = importlib.import_module(name)
        names = getattr(module, "__all__", None) or [n for n in vars(module) if n[0] != "_"]
        things = [getattr(module, n) for n in names]
        whole = ":imported-members:" in options
        found |= {id(t) for t in things if whole or getattr(t, "__module__", None) == name}
    return found


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_name_is_in_the_reference(package: str):
    module = importlib.import_module(package)
    names = {name: getattr(module, name) for name in module.__all__}
    # Constants, and modules, stand in the texts of others.
    told = {n: t for n, t in names.items() if inspect.isclass(t) or inspect.isfunction(t)}
    assert [name for name, thing in told.items() if id(thing) not in described()] == []
    assert [name for name, thing in told.items() if not inspect.getdoc(thing)] == []


def test_every_page_is_in_the_index():
    blocks = re.findall(r"```{toctree}(.*?)```", read(ROOT / "docs" / "index.md"), re.DOTALL)
    listed = {name for block in blocks for name in block.split()}
    written = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert written <= listed


def test_every_method_and_family_is_explained():
    told = re.findall(r"^\| `(\w+)` \|", read(ROOT / "docs" / "choose.md"), re.MULTILINE)
    assert set(told) == METHODS.keys()
    told = re.findall(r"^\| `(\w+)` \|", read(ROOT / "docs" / "ideas.md"), re.MULTILINE)
    assert set(told) == FAMILIES.keys()
