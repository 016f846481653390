"""The command that makes networks smaller: compress."""

from pathlib import Path

import bozzetto as bz
from bozzetto.analysis.certificate import certificate
from bozzetto.analysis.latency import latency
from bozzetto.cli.app import Builder, Flag, Json, Names, app, kept, write_page
from bozzetto.data import load_batches, load_model
from bozzetto.io import check_output
from bozzetto.report import Section
from bozzetto.terminal import show, spinner, watched


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
    write_page(out, plan, Section("Error of each layer", evidence), Section("Latency", speed))
    head = {"folder": str(out), "made_from": target.source} | kept(plan)
    head["latency_ratio"] = speed.ratio("small")
    show(as_json, head, {"layers": plan.rows(), "errors": evidence.rows()})
