"""The command's application, its options and what all its parts print."""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

import bozzetto as bz

app = App(
    name="bozzetto",
    version=version("bozzetto"),
    help="Make a trained network smaller, and know what that costs.\n\n"
    "MODEL is package.module:callable that returns the network, a folder written by compress, or "
    "a local transformers folder. DATA is package.module:callable that returns batches, a parquet "
    "file, or a folder of parquet files or of images in a folder for every class.\n\n"
    "Exit codes: 0 done, 1 bad input, 2 wrong usage, 3 no plan meets the budget.",
    result_action="return_value",
)

# Options that several commands share, with their help.
Flag = Annotated[bool, Parameter(negative="", show_default=False)]
Json = Annotated[Flag, Parameter("--json", help="Print JSON only, for programs.")]
Force = Annotated[Flag, Parameter(help="Replace a network that was saved there.")]
Names = Annotated[list[str] | None, Parameter(negative="", metavar="NAME")]
Folder = Annotated[Path, Parameter(metavar="DIR")]
Data = Annotated[
    str,
    Parameter(metavar="DATA", help="The batches: package.module:callable, a file or a folder."),
]
BatchSize = Annotated[int, Parameter(help="Images in a batch, where DATA is a file or a folder.")]
Builder = Annotated[
    str | None,
    Parameter(
        "--model",
        metavar="MODEL",
        help="MODEL that the folder was made from. Needed unless it is in the package that DATA "
        "names, as a folder may come from a stranger, and building a model runs code.",
    ),
]


def kept(plan: bz.Plan) -> dict[str, Any]:
    """Trained values and multiply-adds, and the fractions kept."""
    found: dict[str, Any] = {"params": plan.small.get("params")}
    return found | {f"{r}_kept": plan.kept(r) for r in plan.target if r in plan.small}
