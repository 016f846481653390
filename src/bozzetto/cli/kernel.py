"""The command that compares how networks learn: kernel."""

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from cyclopts import Parameter
from torch import Tensor

from bozzetto.analysis.kernel import kernel as compare
from bozzetto.batches import split_batch
from bozzetto.cli.app import BatchSize, Data, Folder, Json, app
from bozzetto.data import load_batches, load_model
from bozzetto.report import Section, add_sections, check_sections
from bozzetto.terminal import show, spinner


@app.command
def kernel(
    target: str,
    small: str,
    /,
    *,
    data: Data,
    examples: int = 64,
    ridge: float = 1e-3,
    out: Folder | None = None,
    seed: int = 0,
    batch_size: BatchSize = 64,
    builder: Annotated[str | None, Parameter("--model", metavar="MODEL")] = None,
    as_json: Json = False,
) -> None:
    """Compare the tangent kernels of two networks: whether one learns as the other would.

    Args:
        target: MODEL that SMALL is compared with.
        small: DIR written by compress or train, or any MODEL.
        examples: How many inputs the kernels are taken at; the cost grows with the square.
        ridge: Of the effective dimension, as a fraction of the target's mean eigenvalue.
        out: Folder to whose report.html this is added: a new one, or that of a saved network.
        seed: Of the order of images.
        builder: MODEL that a saved folder was made from; TARGET without it.
    """
    if out is not None:
        check_sections(out)
    first = load_model(target, build=builder, data=data).network
    second = load_model(small, build=builder or target, data=data).network
    x = _first(load_batches(data, size=batch_size, seed=seed), examples)
    with spinner() as say:
        say("taking kernels")
        found = compare(first, second, x, ridge=ridge)
    if out is not None:
        add_sections(out, [Section("Tangent kernel", found)])
    head = {} if out is None else {"report": str(out / "report.html")}
    show(as_json, head | {"inputs": len(x)}, {"networks": found.rows()})


def _first(batches: Iterable[Any], count: int) -> Tensor:
    """The first inputs of all batches, (count, ...) or as many as there are."""
    found, held = list[Tensor](), 0
    for batch in batches:
        if held >= count:
            break
        args, kwargs, _ = split_batch(batch)
        if len(args) != 1 or kwargs:
            raise ValueError(
                "a tangent kernel needs batches with one tensor of inputs; got "
                f"{len(args)} and the names {sorted(kwargs)}"
            )
        x = args[0]
        found.append(x)
        held += len(x)
    return torch.cat(found)[:count] if found else torch.empty(0)
