"""The plot of crash-depth.json: python benchmarks/crash_plot.py writes docs/crash-depth.svg.

One failing layer of six: the papers' bound grows with the layers behind it as (K w N)^distance,
what is measured does not.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

HERE = Path(__file__).parent
LINES = (
    ("papers", "papers' bound", "--"),
    ("best", "best bound", ":"),
    ("measured", "measured", "-"),
)


def drawn(rows: list[dict[str, Any]]) -> Figure:
    """A line a constant K and kind, against the layers behind the failing one."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    ax = figure.subplots()
    for i, k in enumerate(sorted({row["K"] for row in rows})):
        own = [row for row in rows if row["K"] == k]
        behind = [row["layers behind"] for row in own]
        for kind, label, style in LINES:
            name = f"{label}, K = {k:g}" if kind == "measured" or not i else None
            ax.plot(behind, [row[kind] for row in own], style, color=f"C{i}", label=name)
    ax.set_yscale("log")
    ax.set_xlabel("layers behind the failing one")
    ax.set_ylabel("mean |error| of an output")
    ax.legend(fontsize=8)
    return figure


def main() -> None:
    """Draw."""
    rows = json.loads((HERE / "results" / "crash-depth.json").read_text())["rows"]
    with mpl.rc_context({"svg.hashsalt": "crash", "svg.fonttype": "none"}):
        drawn(rows).savefig(HERE.parent / "docs" / "crash-depth.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
