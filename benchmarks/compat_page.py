"""docs/compat.md from benchmarks/results/compat.json: python benchmarks/compat_page.py."""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE, RESULT = HERE.parent / "docs" / "compat.md", HERE / "results" / "compat.json"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
STEPS = {
    "budget_met": "budget",
    "forward": "forward",
    "backward": "backward",
    "same_after_loading": "reloaded",
    "pt2": "`.pt2`",
    "onnx": "`.onnx`",
}


def table(result: dict[str, Any]) -> str:
    """The rows in Markdown, then versions, then what failed and why."""
    head = ["library", "network", "values", "kept", "layers", *STEPS.values()]
    lines = [head, ["---"] * len(head), *(_cells(row) for row in result["rows"])]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    failed = [
        f"- {row['library']} {row['network']}: {row['reason']}"
        for row in result["rows"]
        if "reason" in row
    ]
    missing = ", ".join(result["missing"])
    parts = [text, f"Measured with {versions}.", "\n".join(failed)]
    return "\n\n".join(filter(None, [*parts, missing and f"Not measured yet: {missing}."]))


def _cells(row: dict[str, Any]) -> list[str]:
    kept = f"{row['params_kept']:.1%}" if "params_kept" in row else "–"
    values = f"{row['params']:,}" if "params" in row else "–"
    marks = [{True: "✓", False: "**no**"}.get(row.get(step), "–") for step in STEPS]
    return [row["library"], row["network"], values, kept, str(row.get("layers", "–")), *marks]


def written(page: str, result: dict[str, Any]) -> str:
    """The page with its table made anew."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{table(result)}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(), json.loads(RESULT.read_text())))
