"""The model card: what a folder says of itself on a hub, in words and tables."""

import re
from collections.abc import Mapping, Sequence

from bozzetto.plan import Plan
from bozzetto.report import Result, columns, shown

__all__ = ["model_card"]

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # as hubs write them: apache-2.0, mit, unknown
_BASE = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_KINDS = {"params": "trained values", "flops": "operations", "bytes": "bytes", "latency": "time"}


def model_card(
    plan: Plan,
    *,
    license: str,
    base: str | None = None,
    title: str = "A smaller network",
    results: Mapping[str, Result] | None = None,
) -> str:
    """The README.md of a saved network, whose front matter hubs read.

    Args:
        plan: that made it.
        license: of the source model, as hubs abbreviate it: "apache-2.0", "mit", …; "unknown" says
            that nobody looked it up.
        base: the source model's name on the hub.
        title: its heading.
        results: further sections by heading: what analyses returned.

    Raises:
        ValueError: for what is no licence, or a base that is no name of a model.
    """
    if not _LICENSE.fullmatch(license):
        raise ValueError(
            "a model card needs the licence of the source model, as 'apache-2.0' or 'mit' "
            f"('unknown' is one); got {license!r}"
        )
    if base is not None and not _BASE.fullmatch(base):
        raise ValueError(f"a base is the name of a model, as 'user/name'; got {base!r}")
    named = [] if base is None else [f"base_model: {base}"]
    head = ["---", f"license: {license}", "library_name: bozzetto", *named, "tags:"]
    head += ["- bozzetto", "- model-compression", "---"]
    parts = ["\n".join(head), f"# {title}", _words(plan, base), "## The plan", _table(plan.rows())]
    for heading, result in (results or {}).items():
        parts += [f"## {heading}", _table(result.rows())]
    return "\n\n".join([*parts, _USE]) + "\n"


_USE = """## Use

```python
import bozzetto as bz

small = bz.load("user/name")  # where it was uploaded, or a local folder
```

The plan is data, the weights are safetensors: loading runs no code of this folder. A network that
is no model of transformers needs its target's architecture too: `bz.load("user/name", model)`."""


def _words(plan: Plan, base: str | None) -> str:
    """The plan in sentences."""
    kept = [
        f"{plan.kept(r):.1%} of its {name} ({shown(plan.small[r])} of {shown(plan.target[r])})"
        for r, name in _KINDS.items()
        if r in plan.small and plan.target.get(r)
    ]
    made = f"[{base}](https://huggingface.co/{base})" if base else "a larger one"
    methods = sorted({choice.method for choice in plan.choices.values()})
    lines = [f"This network approximates the operation of {made}."]
    if kept:
        lines.append(f"It keeps {', '.join(kept)}.")
    lines.append(
        f"{len(plan.choices)} layers became smaller ({', '.join(methods) or 'none'}), "
        f"{len(plan.dense)} stayed as they were."
    )
    return " ".join(lines)


def _table(rows: Sequence[dict[str, object]]) -> str:
    """Rows in Markdown."""
    names = columns(rows)
    lines = [[name.replace("_", " ") for name in names], ["---"] * len(names)]
    lines += [[_cell(row.get(name)) for name in names] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    return shown(value).replace("|", r"\|").replace("<", "&lt;").replace("\n", " ")
