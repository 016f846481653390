"""The command that tunes a saved network: train."""

from itertools import islice
from pathlib import Path

import bozzetto as bz
from bozzetto.cli.app import Builder, Flag, Json, app, kept
from bozzetto.cli.evidence import PLAN, TRAINING, certified, measured, sections
from bozzetto.data import Batches, load_batches, load_model
from bozzetto.io import check_output, read
from bozzetto.report import add_sections
from bozzetto.terminal import following, show, spinner
from bozzetto.train import CheckpointMismatch

_SHOWN = 8  # batches on which the report compares the tuned network with its target


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
    results = {TRAINING: history, PLAN: model.plan}
    if distill:  # the target has its trained weights
        held, target = list(islice(loader, _SHOWN)), model.target.network
        with spinner() as say:
            results = measured(target, {out.name: model.network}, held, {}, say) | results
            results |= certified(target, model.network, model.plan, held, say)
    add_sections(out, sections(results))
    show(as_json, {"folder": str(out)} | kept(model.plan), {"epochs": history.rows()})
