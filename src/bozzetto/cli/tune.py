"""The command that tunes a saved network: train."""

from itertools import islice
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

import bozzetto as bz
from bozzetto.cli.app import Builder, Flag, Json, app, kept
from bozzetto.cli.evidence import PLAN, TRAINING, certified, measured, sections
from bozzetto.data import Batches, load_batches, load_model
from bozzetto.io import check_output, read
from bozzetto.report import add_sections
from bozzetto.terminal import following, show, spinner
from bozzetto.train import Augmented, CheckpointMismatch

_UNCHANGED = bz.Recipe()
_SHOWN = 8  # batches on which the report compares the tuned network with its target


@app.command
def train(
    folder: Path,
    /,
    *,
    data: str,
    out: Path | None = None,
    val: str | None = None,
    distill: bool = True,
    shift: int = 0,
    mirror: Flag = False,
    recipe: Annotated[bz.Recipe, Parameter(name="*", negative="")] = _UNCHANGED,
    batch_size: int = 64,
    force: Flag = False,
    builder: Builder = None,
    as_json: Json = False,
) -> None:
    """Tune a saved network; when interrupted, the same command goes on where it was.

    How it is trained is a Recipe; its fields are options.

    Args:
        folder: DIR written by compress.
        out: Folder for the tuned network; DIR itself with --force and without this.
        val: Batches to measure the accuracy on after every epoch, as DATA.
        distill: Also learn from the target, which its builder then gives with trained weights.
        shift: Pixels by which images are shifted at random, anew every pass.
        mirror: Mirror images at random as well.
        recipe: How to train.
        data: The batches: package.module:callable, a file or a folder.
        batch_size: Images in a batch, where DATA is a file or a folder.
        force: Replace a network that was saved there.
        builder: MODEL that the folder was made from. Needed unless it is in the package that DATA
            names, as a folder may come from a stranger, and building a model runs code.
        as_json: Print JSON only, for programs.
    """
    if out is None and not force:
        raise ValueError("train needs --out DIR for the tuned network, or --force to replace DIR's")
    out = check_output(folder if out is None else out, force=force)
    digest = read(folder).sha256  # so that no other network's checkpoint is taken up
    model = load_model(str(folder), build=builder, data=data)
    assert model.target is not None
    assert model.plan is not None
    loader = load_batches(data, size=batch_size, seed=recipe.seed)
    if isinstance(loader, Batches):
        loader.count()
    checkpoint = out.absolute().with_name(f"{out.absolute().name}-{digest[:12]}.training")
    moved = shift != 0 or mirror
    seen = Augmented(loader, shift=shift, mirror=mirror, seed=recipe.seed) if moved else loader
    validation = None if val is None else load_batches(val, size=batch_size)
    try:
        with following() as follow:
            history = bz.train(
                model.network,
                seen,
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
    results = {TRAINING: history, PLAN: model.plan}
    if distill:  # the target has its trained weights
        held, target = list(islice(loader, _SHOWN)), model.target.network
        with spinner() as say:
            results = measured(target, {out.name: model.network}, held, {}, say) | results
            results |= certified(target, model.network, model.plan, held, say)
    add_sections(out, sections(results))
    show(as_json, {"folder": str(out)} | kept(model.plan), {"epochs": history.rows()})
