"""Commands that look at networks: demo, inspect, evaluate."""

from pathlib import Path

from torch import nn

import bozzetto as bz
from bozzetto.cli.app import BatchSize, Builder, Data, Folder, Json, Names, app, kept
from bozzetto.data import load_batches, load_model
from bozzetto.io import PLAN, read
from bozzetto.terminal import show, spinner, watched


@app.command
def demo(*, out: Folder = Path("bozzetto-demo"), as_json: Json = False) -> None:
    """Train a network on handwritten digits, make it small in three ways and measure all.

    Args:
        out: Folder for report.html and the small networks.
    """
    from bozzetto.demo import demo as run

    with spinner() as say:
        made = run(out, say=say)
    head = {"report": str(out / "report.html"), "seeds": list(made.seeds)}
    show(as_json, head, {"networks": made.rows(), "layers": made.certificate.rows()})


@app.command
def inspect(model: str, /, *, builder: Builder = None, as_json: Json = False) -> None:
    """List the layers of a model, or the plan of a saved folder (which runs no code).

    Args:
        model: package.module:callable, a saved folder or a transformers folder.
    """
    if builder is None and (Path(model) / PLAN).is_file():
        saved = read(model)
        head = {"folder": model, "made_from": saved.source} | kept(saved.plan)
        return show(as_json, head, {"layers": saved.plan.rows()})
    found = load_model(model, build=builder).network
    total = sum(p.numel() for p in found.parameters())
    return show(as_json, {"model": model, "params": total}, {"layers": _layers(found, total)})


def _layers(model: nn.Module, total: int) -> list[dict[str, object]]:
    """Every module of the expanded model that holds values of its own, tied ones once."""
    rows, seen = [], dict[int, str]()
    for path, module in bz.expand(model).named_modules():
        own = dict(module.named_parameters(recurse=False))
        fresh = [p.numel() for p in own.values() if id(p) not in seen]
        if own:
            tied = sorted({seen[id(p)] for p in own.values() if id(p) in seen})
            weight = own.get("weight", next(iter(own.values())))
            rows.append(
                {
                    "layer": path,
                    "kind": type(module).__name__,
                    "weight": "×".join(map(str, weight.shape)),
                    "params": sum(fresh),
                    "share": sum(fresh) / total,
                    "tied_to": ", ".join(tied),
                }
            )
        seen |= {id(p): path for p in own.values() if id(p) not in seen}
    return rows


@app.command
def evaluate(
    folder: str,
    /,
    *,
    data: Data,
    metric: Names = None,
    batch_size: BatchSize = 64,
    builder: Builder = None,
    as_json: Json = False,
) -> None:
    """Measure a saved network, or any MODEL, on labelled batches.

    Args:
        folder: DIR written by compress or train, or any MODEL.
        metric: accuracy (the default), top5, loss, mse, cosine; may be repeated.
    """
    model = load_model(folder, build=builder, data=data)
    loader = load_batches(data, size=batch_size)
    found = bz.evaluate(model.network, watched(loader, "evaluating"), metric or ["accuracy"])
    params = sum(p.numel() for p in model.network.parameters())
    show(as_json, {"model": folder, "params": params} | found, {})
