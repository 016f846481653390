"""How the pages are built: `make docs`."""

import re
from importlib import metadata

from sphinx.application import Sphinx

project = "Bozzetto"
copyright = "2026, The Bozzetto developers"
author = "The Bozzetto developers"
release = metadata.version("bozzetto")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"Bozzetto {release}"
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

default_role = "literal"  # docstrings write code in single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {
    "members": True,
    "show-inheritance": True,
    # scikit-learn adds these to estimators; they refer to its own pages
    "exclude-members": "set_fit_request, set_partial_fit_request, set_score_request",
}
napoleon_numpy_docstring = False

_CODE = re.compile(r"(`+[^`]*`+)")
_MARKUP = re.compile(r"([\\*|]|(?<=\w)_(?!\w|(?:, \w+)*:))")


def _read_as_text(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Take |x|, xᵀ*y and fit_ in a docstring for what they say, not for markup."""
    parts = _CODE.split("\n".join(lines))
    parts[::2] = [_MARKUP.sub(r"\\\1", text) for text in parts[::2]]
    lines[:] = "".join(parts).split("\n")


def setup(app: Sphinx) -> None:
    """Connect before napoleon, which reads the sections."""
    app.connect("autodoc-process-docstring", _read_as_text, priority=400)
