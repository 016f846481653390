"""XML as a tree whose elements know their lines."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

__all__ = ["Element", "parse"]


@dataclass
class Element:
    """An element of an XML file."""

    tag: str
    attributes: dict[str, str]
    line: int
    text: str = ""
    children: list["Element"] = field(default_factory=list)

    def all(self, tag: str) -> Iterator["Element"]:
        """The children of a tag."""
        return (child for child in self.children if child.tag == tag)

    def find(self, path: str) -> "Element | None":
        """The first element along a path of tags, as in "position/point/x"."""
        here: Element | None = self
        for tag in path.split("/"):
            here = None if here is None else next(here.all(tag), None)
        return here

    def number(self, path: str) -> float:
        """The number in an element; NaN if it is absent or is no number."""
        found = self.find(path)
        try:
            return float("nan") if found is None else float(found.text)
        except ValueError:
            return float("nan")


def parse(path: Path) -> Element:
    """The root of an XML file.

    Raises:
        ValueError: if it is no XML, with file, line and what is wrong.
    """
    parser, root = expat.ParserCreate(), Element("", {}, 0)
    open_elements: list[tuple[Element, list[str]]] = [(root, [])]  # with pieces of their text

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = Element(tag, attributes, parser.CurrentLineNumber)
        open_elements[-1][0].children.append(element)
        open_elements.append((element, []))

    def text(data: str) -> None:
        open_elements[-1][1].append(data)

    def end(_: str) -> None:
        element, pieces = open_elements.pop()
        element.text = "".join(pieces)

    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = text
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except expat.ExpatError as error:
        what = expat.ErrorString(error.code)
        raise ValueError(f"{path}:{error.lineno}: this is no XML: {what}") from error
    return root.children[0]
