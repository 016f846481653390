"""How the pages are built: `make docs`."""

import os
import re
from importlib import metadata

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

project = "Bozzetto"
copyright = "2026, The Bozzetto developers"
author = "The Bozzetto developers"
release = metadata.version("bozzetto")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    "cyclopts.ext.sphinx",
]
html_theme = "furo"
html_title = f"Bozzetto {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"
exclude_patterns = ["_build", "gallery/*.ipynb", "sg_execution_times.rst"]
myst_enable_extensions = ["colon_fence", "dollarmath", "amsmath"]
myst_heading_anchors = 3

default_role = "literal"  # docstrings write code in single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {
    "members": True,
    "show-inheritance": True,
    # scikit-learn adds these to estimators; they refer to its own pages
    "exclude-members": "set_fit_request, set_partial_fit_request, set_score_request, "
    "set_predict_request, set_decision_function_request",
}
napoleon_numpy_docstring = False

os.environ.setdefault("OMP_NUM_THREADS", "1")
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "ignore_pattern": r"trajectory\.py",  # it reads data from beside a checkout
    "capture_repr": (),
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "min_reported_time": 1e9,
    "write_computation_times": False,
    "remove_config_comments": True,
}

_CODE = re.compile(r"(`+[^`]*`+)")
_MARKUP = re.compile(r"([\\*|]|(?<=\w)_(?!\w|(?:, \w+)*:\s))")


def _read_as_text(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Take |x|, xᵀ*y, fit_ and `x`s in a docstring for what they say, not for markup."""
    parts = _CODE.split("\n".join(lines))
    parts[::2] = [_MARKUP.sub(r"\\\1", text) for text in parts[::2]]
    parts[2::2] = [re.sub(r"^(?=\w)", r"\\ ", text) for text in parts[2::2]]
    lines[:] = "".join(parts).split("\n")


def _without_marks(app: Sphinx, name: str, source: list[str]) -> None:
    """Drop the comments at measured numbers: one that begins a line would end the paragraph."""
    source[0] = re.sub(r"<!-- n:.*? -->", "", source[0])


def _mathml(node: nodes.Element, still: str, *, block: bool) -> str:
    """A formula, in which these marks keep their size."""
    formula = latex2mathml.tex2mathml(node.astext(), as_block=block)
    return re.sub(rf"<mo[^>]*>([{still}])</mo>", r'<mo stretchy="false">\1</mo>', formula)


def _inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(_mathml(node, "‖{}⟨⟩", block=False))
    raise nodes.SkipNode


def _block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math">{_mathml(node, "‖", block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Connect before napoleon, which reads the sections; write formulas as MathML.

    Browsers show MathML by themselves, so that pages can be read without a network.
    """
    app.connect("source-read", _without_marks)
    app.connect("autodoc-process-docstring", _read_as_text, priority=400)
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
