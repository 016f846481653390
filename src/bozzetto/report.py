"""The report: one self-contained HTML page of results, with plots as inline SVG."""

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Result", "Section", "columns", "shown", "write_report"]

# Colours that matplotlib writes and the page's style sheet gives for light and dark.
_INK, _SERIES = "#010203", ("#a10101", "#a10202", "#a10303", "#a10404", "#a10505", "#a10606")
_STYLE = {
    "svg.fonttype": "none",
    "axes.prop_cycle": f"cycler('color', {list(_SERIES)})",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "font.size": 10,
    "legend.frameon": False,
    "savefig.transparent": True,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


class Result(Protocol):
    """What every analysis returns."""

    def rows(self) -> list[dict[str, object]]:
        """The table, one dict a row."""
        ...

    def figure(self, ax: Any) -> None:
        """The plot, on axes of matplotlib."""
        ...


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph and what a result shows of itself."""

    title: str
    result: Result
    text: str = ""


def write_report(
    path: Path | str, sections: Iterable[Section], *, title: str, text: str = ""
) -> Path:
    """Write a page that needs nothing else: no script, no font and no picture from elsewhere.

    It follows the reader's preference for light or dark, and prints on white.

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
    shown_sections = [_view(section, number) for number, section in enumerate(sections, 1)]
    page = environment.get_template("page.html").render(
        title=title, text=text, sections=shown_sections
    )
    return _write(Path(path), page)


def _view(section: Section, number: int) -> dict[str, Any]:
    """What the template needs of a section."""
    rows = section.result.rows()
    names = columns(rows)
    numeric = {n for n in names if all(_is_number(row.get(n)) for row in rows)}
    return {
        "title": section.title,
        "text": section.text,
        "plot": _plot(section, f"plot{number}-"),
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


def _plot(section: Section, prefix: str) -> str:
    """The result's figure as an SVG element whose names are its own in the page."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    style: Any = _STYLE | {"svg.hashsalt": prefix}
    with mpl.rc_context(style):
        figure = Figure(figsize=(7, _height(section.result)), layout="constrained")
        section.result.figure(figure.subplots())
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), prefix, section.title)


def _height(result: Result) -> float:
    """Inches: bars of many rows need room."""
    return min(max(2.6, 1.4 + 0.28 * len(result.rows())), 12)


def _inline(svg: str, prefix: str, title: str) -> str:
    """Matplotlib's SVG without its header, with the page's colours, font and prefixed names."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\sid="|url\(#|href="#)', lambda found: found[1] + prefix, svg)
    svg = re.sub(r'\s(?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"font:\s*([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = svg.replace(_INK, "currentColor")
    for number, colour in enumerate(_SERIES):
        svg = svg.replace(colour, f"var(--series-{number})")
    return svg.replace("<svg", f'<svg role="img" aria-label="Plot: {escape(title)}"', 1)


def _write(path: Path, page: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
