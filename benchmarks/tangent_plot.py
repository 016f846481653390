"""The plot of tangent-sketch.json, docs/tangent-sketch.svg: python benchmarks/tangent_plot.py.

Sketches that grow with the layer have the dense layer's limit, sketches of a fixed size do not.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

HERE = Path(__file__).parent
WIDTHS = (128, 512, 2048)


def drawn(rows: list[dict[str, Any]]) -> Figure:
    """A line a kind of layer, against the width; and the slope of 1/√n."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    ax = figure.subplots()
    for row in rows:
        ax.loglog(WIDTHS, [row[f"error_{n}"] for n in WIDTHS], marker="o", label=row["layer"])
    first = rows[0][f"error_{WIDTHS[0]}"]
    ax.loglog(WIDTHS, [first * (WIDTHS[0] / n) ** 0.5 for n in WIDTHS], "k:", label="like 1/√n")
    ax.set_xticks(WIDTHS, [str(n) for n in WIDTHS])
    ax.minorticks_off()
    ax.set_xlabel("width n of the hidden layer")
    ax.set_ylabel("relative distance from the dense limit")
    ax.legend(fontsize=8)
    return figure


def main() -> None:
    """Draw."""
    rows = json.loads((HERE / "results" / "tangent-sketch.json").read_text())["rows"]
    with mpl.rc_context({"svg.hashsalt": "tangent", "svg.fonttype": "none"}):
        drawn(rows).savefig(HERE.parent / "docs" / "tangent-sketch.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
