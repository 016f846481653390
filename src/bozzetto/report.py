"""The report: one self-contained HTML page of results, with plots as inline SVG."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Self

from bozzetto.plots import Result, drawn_svg, harmless_svg, inlined

__all__ = [
    "SECTIONS",
    "Bars",
    "Drawn",
    "Result",
    "Section",
    "add_sections",
    "check_sections",
    "columns",
    "read_sections",
    "shown",
    "write_report",
]

SECTIONS, PAGE = "report.json", "report.html"
_OURS = {SECTIONS, PAGE, "plan.json"}  # of which a folder that takes sections has one


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph and what a result shows of itself."""

    title: str
    result: Result
    text: str = ""


@dataclass(frozen=True)
class Drawn:
    """A section as data: what its result showed when it was measured."""

    title: str
    text: str
    rows: list[dict[str, Any]]
    svg: str

    @classmethod
    def of(cls, section: Section) -> Self:
        """The section's table and plot."""
        rows = [{k: _plain(v) for k, v in row.items()} for row in section.result.rows()]
        svg = harmless_svg(drawn_svg(section.result, section.title))
        return cls(section.title, section.text, rows, svg)


@dataclass(frozen=True)
class Bars:
    """A result of rows that are there already: a bar for some of their numbers.

    Attributes:
        table: the rows.
        name: the column that names the bars.
        values: the columns that are drawn, side by side.
        label: of the axis.
    """

    table: list[dict[str, Any]]
    name: str
    values: tuple[str, ...]
    label: str

    def rows(self) -> list[dict[str, object]]:
        """The table."""
        return [dict(row) for row in self.table]

    def figure(self, ax: Any) -> None:
        """Horizontal bars, one group a row."""
        height = 0.8 / len(self.values)
        for number, column in enumerate(self.values):
            places = [i - 0.4 + height * (number + 0.5) for i in range(len(self.table))]
            ax.barh(places, [row.get(column) or 0 for row in self.table], height, label=column)
        ax.set_yticks(range(len(self.table)), [str(row[self.name]) for row in self.table])
        ax.set_ylim(max(len(self.table), 4) - 0.5, -0.5)  # from above, and few bars stay slim
        ax.set_xlabel(self.label)
        if len(self.values) > 1:
            ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(self.values))


def _plain(value: object) -> object:
    """A value of a table as JSON has it."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else str(value)


def check_sections(folder: Path | str) -> Path:
    """The folder, if it can take sections: new, empty, or one that Bozzetto wrote.

    Raises:
        FileExistsError: for any other.
    """
    folder = Path(folder)
    found = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    if folder.is_file() or (found and not found & _OURS):
        raise FileExistsError(f"a report goes into a new or empty folder, or one of ours; {folder}")
    return folder


def add_sections(folder: Path | str, sections: Iterable[Section]) -> Path:
    """Add sections to the report of a folder, in place of those that had their titles.

    They are kept in report.json, from which the page report.html is made: what was measured on
    different days stands on one page.

    Args:
        folder: new, empty, or one that Bozzetto wrote.
        sections: what to add.

    Returns:
        The page.

    Raises:
        FileExistsError: see `check_sections`.
        ValueError: if its report.json is damaged.
    """
    folder = check_sections(folder)
    known = {old.title: old for old in read_sections(folder)}
    known |= {section.title: Drawn.of(section) for section in sections}
    _write(folder / SECTIONS, json.dumps([asdict(section) for section in known.values()]))
    return write_report(folder / PAGE, known.values(), title=folder.absolute().name)


def read_sections(folder: Path | str) -> list[Drawn]:
    """The sections of a folder's report; none where there is no report.json.

    Raises:
        ValueError: if it is damaged.
    """
    file = Path(folder) / SECTIONS
    if not file.is_file():
        return []
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, list):
            raise TypeError(f"a list is needed; got {type(found).__name__}")
        return [_read(**section) for section in found]
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not a list of sections: {error}") from error


def _read(*, title: Any, text: Any, rows: Any, svg: Any) -> Drawn:
    """A section from parsed JSON, checked."""
    if not all(isinstance(value, str) for value in (title, text, svg)):
        raise TypeError("titles, texts and plots are strings")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise TypeError("rows are a list of objects")
    kept = [{str(name): _plain(value) for name, value in row.items()} for row in rows]
    return Drawn(title, text, kept, harmless_svg(svg))


def write_report(
    path: Path | str, sections: Iterable[Section | Drawn], *, title: str, text: str = ""
) -> Path:
    """Write a page that needs nothing else: no script, no font and no picture from elsewhere.

    It follows the reader's preference for light or dark, and prints on white. Its own policy keeps
    a browser from running or loading anything, whatever the sections hold.

    Args:
        path: of the page; replaced whole or not at all.
        sections: what it shows.
        title: of the page.
        text: a paragraph below the title.

    Raises:
        OSError: if it cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("bozzetto", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = [section if isinstance(section, Drawn) else Drawn.of(section) for section in sections]
    shown_sections = [_view(section, number) for number, section in enumerate(drawn, 1)]
    page = environment.get_template("page.html").render(
        title=title, text=text, sections=shown_sections
    )
    return _write(Path(path), page)


def _view(section: Drawn, number: int) -> dict[str, Any]:
    """What the template needs of a section."""
    rows = section.rows
    names = columns(rows)
    numeric = {n for n in names if all(_is_number(row.get(n)) for row in rows)}
    return {
        "title": section.title,
        "text": section.text,
        "plot": inlined(section.svg, f"plot{number}-", section.title),
        "head": [(name.replace("_", " "), name in numeric) for name in names],
        "rows": [[(shown(row.get(name)), name in numeric) for name in names] for row in rows],
    }


def columns(rows: Sequence[dict[str, object]]) -> list[str]:
    """All keys of the rows that say anything, in the order in which they appear."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if any(row.get(name) not in (None, "") for row in rows)]


def shown(value: object) -> str:
    """A value as it stands in a table: four digits, thousands apart, a dash for none."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    if isinstance(value, Integral):
        return f"{int(value):,}".replace(",", "\u202f")
    return f"{float(value):.4g}"


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, Real) and not isinstance(value, bool))


def _write(path: Path, page: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(page, encoding="utf-8", errors="replace")  # halves of surrogates
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
