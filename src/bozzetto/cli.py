"""The command: it parses, calls the library and prints; see `bozzetto --help`."""

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from torch import nn

import bozzetto as bz
from bozzetto.analysis.certificate import certificate
from bozzetto.analysis.latency import latency
from bozzetto.data import Batches, blames_user, failure, load_batches, load_model
from bozzetto.io import PLAN, check_output, read
from bozzetto.knapsack import Unreachable
from bozzetto.report import Section, write_report
from bozzetto.terminal import complain, following, show, spinner, watched
from bozzetto.train import CheckpointMismatch

BAD_INPUT, USAGE, NO_PLAN = 1, 2, 3  # exit codes
_BAD = (ValueError, TypeError, OSError, RuntimeError, ArithmeticError)

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


@app.command
def demo(*, out: Path = Path("bozzetto-demo"), as_json: Json = False) -> None:
    """Train a network on handwritten digits, make it small in three ways and measure all.

    Args:
        out: Folder for report.html and the small networks.
        as_json: Print JSON only, for programs.
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
        builder: MODEL that the folder was made from. Needed unless it is in the package that DATA
            names, as a folder may come from a stranger, and building a model runs code.
        as_json: Print JSON only, for programs.
    """
    if builder is None and (Path(model) / PLAN).is_file():
        saved = read(model)
        head = {"folder": model, "made_from": saved.source} | _kept(saved.plan)
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
def compress(
    model: str,
    /,
    *,
    data: str,
    out: Path,
    keep: float | None = None,
    flops: float | None = None,
    methods: Names = None,
    seed: int = 0,
    batch_size: int = 64,
    force: Flag = False,
    builder: Builder = None,
    as_json: Json = False,
) -> None:
    """Write a smaller network that approximates a trained one, and a report of what that costs.

    Args:
        model: package.module:callable, a saved folder or a transformers folder.
        out: Folder for plan.json, model.safetensors and report.html.
        keep: Fraction of the trained values to keep, in (0, 1].
        flops: Fraction of the multiply-adds to keep.
        methods: Names of methods to choose from, layer by layer; all that suit by default.
        seed: Of random sketches and of the order of images.
        data: The batches: package.module:callable, a file or a folder.
        batch_size: Images in a batch, where DATA is a file or a folder.
        force: Replace a network that was saved there.
        builder: MODEL that the folder was made from. Needed unless it is in the package that DATA
            names, as a folder may come from a stranger, and building a model runs code.
        as_json: Print JSON only, for programs.
    """
    budget = bz.Budget(params=keep, flops=flops)
    check_output(out, force=force)
    target = load_model(model, build=builder, data=data)
    loader = load_batches(data, size=batch_size, seed=seed)
    batches = list(watched(loader, "reading DATA"))
    with spinner() as say:
        say("planning and fitting")
        small, plan = bz.compress(
            target.network, budget, batches, methods=methods or "auto", seed=seed
        )
        say("measuring errors")
        evidence = certificate(target.network, small, plan, batches)
        say("measuring latency")
        speed = latency({"target": target.network, "small": small}, batches[0])
    bz.save(out, small, plan, source=target.source, force=force)
    _write_page(out, plan, Section("Error of each layer", evidence), Section("Latency", speed))
    head = {"folder": str(out), "made_from": target.source} | _kept(plan)
    head["latency_ratio"] = speed.ratio("small")
    show(as_json, head, {"layers": plan.rows(), "errors": evidence.rows()})


@app.command
def evaluate(
    folder: str,
    /,
    *,
    data: str,
    metric: Names = None,
    batch_size: int = 64,
    builder: Builder = None,
    as_json: Json = False,
) -> None:
    """Measure a saved network, or any MODEL, on labelled batches.

    Args:
        folder: DIR written by compress or train, or any MODEL.
        metric: accuracy (the default), top5, loss, mse, cosine; may be repeated.
        data: The batches: package.module:callable, a file or a folder.
        batch_size: Images in a batch, where DATA is a file or a folder.
        builder: MODEL that the folder was made from. Needed unless it is in the package that DATA
            names, as a folder may come from a stranger, and building a model runs code.
        as_json: Print JSON only, for programs.
    """
    model = load_model(folder, build=builder, data=data)
    loader = load_batches(data, size=batch_size)
    found = bz.evaluate(model.network, watched(loader, "evaluating"), metric or ["accuracy"])
    params = sum(p.numel() for p in model.network.parameters())
    show(as_json, {"model": folder, "params": params} | found, {})


@app.command
def train(
    folder: Path,
    /,
    *,
    data: str,
    out: Path | None = None,
    val: str | None = None,
    epochs: int = 5,
    lr: float | None = None,
    distill: bool = True,
    seed: int = 0,
    batch_size: int = 64,
    force: Flag = False,
    builder: Builder = None,
    as_json: Json = False,
) -> None:
    """Tune a saved network; when interrupted, the same command goes on where it was.

    Args:
        folder: DIR written by compress.
        out: Folder for the tuned network; DIR itself with --force and without this.
        val: Batches to measure the accuracy on after every epoch, as DATA.
        epochs: Passes over DATA.
        lr: Highest learning rate; the optimiser's own by default.
        distill: Also learn from the target, which its builder then gives with trained weights.
        seed: Of dropout and of the order of images.
        data: The batches: package.module:callable, a file or a folder.
        batch_size: Images in a batch, where DATA is a file or a folder.
        force: Replace a network that was saved there.
        builder: MODEL that the folder was made from. Needed unless it is in the package that DATA
            names, as a folder may come from a stranger, and building a model runs code.
        as_json: Print JSON only, for programs.
    """
    recipe = bz.Recipe(epochs=epochs, lr=lr, seed=seed)
    if out is None and not force:
        raise ValueError("train needs --out DIR for the tuned network, or --force to replace DIR's")
    out = check_output(folder if out is None else out, force=force)
    digest = read(folder).sha256  # so that no other network's checkpoint is taken up
    model = load_model(str(folder), build=builder, data=data)
    assert model.target is not None
    assert model.plan is not None
    loader = load_batches(data, size=batch_size, seed=seed)
    if isinstance(loader, Batches):
        loader.count()
    checkpoint = out.absolute().with_name(f"{out.absolute().name}-{digest[:12]}.training")
    validation = None if val is None else load_batches(val, size=batch_size)
    try:
        with following() as follow:
            history = bz.train(
                model.network,
                loader,
                recipe,
                teacher=model.target.network if distill else None,
                val=validation,
                callbacks=[follow],
                checkpoint=checkpoint,
            )
    except CheckpointMismatch as error:
        raise ValueError(f"{error}; to begin anew, delete {checkpoint}") from error
    bz.save(out, model.network, model.plan, source=model.target.source, force=force)
    checkpoint.unlink(missing_ok=True)
    _write_page(out, model.plan, Section("Training", history))
    show(as_json, {"folder": str(out)} | _kept(model.plan), {"epochs": history.rows()})


def _kept(plan: bz.Plan) -> dict[str, Any]:
    """Trained values and multiply-adds, and the fractions kept."""
    found: dict[str, Any] = {"params": plan.small.get("params")}
    return found | {f"{r}_kept": plan.kept(r) for r in plan.target if r in plan.small}


def _write_page(out: Path, plan: bz.Plan, *sections: Section) -> None:
    write_report(out / "report.html", [Section("The plan", plan), *sections], title=out.name)


def run(tokens: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        app(tokens, exit_on_error=False)
    except CycloptsError:
        return USAGE  # cyclopts has told
    except Exception as error:
        if not isinstance(error, _BAD) and not blames_user(error):
            raise
        complain(failure(error))
        return NO_PLAN if isinstance(error, Unreachable) else BAD_INPUT
    return 0


def main() -> None:
    """The console script."""
    sys.exit(run())
