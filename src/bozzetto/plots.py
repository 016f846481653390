"""Plots in a page: figures as SVG in the page's colours, and strangers' SVG made harmless."""

import io
import re
from html import escape
from typing import Any, Protocol
from xml.etree import ElementTree

__all__ = ["Result", "drawn_svg", "harmless_svg", "inlined"]

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
_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_TAGS = {"svg", "defs", "style", "g", "path", "use", "clipPath", "rect", "text", "tspan", "image"}


class Result(Protocol):
    """What every analysis returns."""

    def rows(self) -> list[dict[str, object]]:
        """The table, one dict a row."""
        ...

    def figure(self, ax: Any) -> None:
        """The plot, on axes of matplotlib."""
        ...


def drawn_svg(result: Result, title: str) -> str:
    """The figure of a result as an SVG element; the same for the same result and title."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    style: Any = _STYLE | {"svg.hashsalt": title}
    with mpl.rc_context(style):
        figure = Figure(figsize=(5.6, _height(result)), layout="constrained")
        result.figure(figure.subplots())
        whole: Any = {"bbox_inches": "tight", "pad_inches": 0.02}  # a long label is not cut off
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, **whole)
    svg = buffer.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)


def _height(result: Result) -> float:
    """Inches: bars of many rows need room."""
    return min(max(2.6, 1.4 + 0.28 * len(result.rows())), 12)


def inlined(svg: str, prefix: str, title: str) -> str:
    """Matplotlib's SVG with the page's colours, font and size, and prefixed names."""
    svg = re.sub(r'(\sid="|url\(#|href="#)', lambda found: found[1] + prefix, svg)
    svg = re.sub(r'\s(?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"font:\s*([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = svg.replace(_INK, "currentColor")
    for number, colour in enumerate(_SERIES):
        svg = svg.replace(colour, f"var(--series-{number})")
    return svg.replace("<svg", f'<svg role="img" aria-label="Plot: {escape(title)}"', 1)


def harmless_svg(text: str) -> str:
    """The SVG element with nothing in it but shapes, text and style, as matplotlib writes them.

    Written anew, so that HTML cannot read it otherwise than XML did.

    Raises:
        ValueError: for anything else.
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"a plot is SVG: {error}") from error
    for element in root.iter():
        if element.tag not in {f"{{{_SVG}}}{tag}" for tag in _TAGS}:
            raise ValueError(f"a plot is made of {sorted(_TAGS)}; got {element.tag!r}")
        for name, value in element.attrib.items():
            linked = name in ("href", f"{{{_LINK}}}href")
            if name.startswith("on") or (linked and not value.startswith(("#", "data:image/png;"))):
                raise ValueError(f"a plot refers to itself only; got {name}={value[:40]!r}")
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _LINK)
    return ElementTree.tostring(root, encoding="unicode")
