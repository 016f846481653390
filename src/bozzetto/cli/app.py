"""The command's application, its options and what all its parts print."""

from importlib.metadata import version
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

Json = Annotated[bool, Parameter("--json", negative="")]
Builder = Annotated[str | None, Parameter("--model")]
Flag = Annotated[bool, Parameter(negative="")]
Names = Annotated[list[str] | None, Parameter(negative="")]


def kept(plan: bz.Plan) -> dict[str, Any]:
    """Trained values and multiply-adds, and the fractions kept."""
    found: dict[str, Any] = {"params": plan.small.get("params")}
    return found | {f"{r}_kept": plan.kept(r) for r in plan.target if r in plan.small}
