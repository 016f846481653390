"""The command that tunes a saved network: train."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

import bozzetto as bz
from bozzetto.cli.app import BatchSize, Builder, Data, Flag, Folder, Force, Json, app, kept
from bozzetto.cli.evidence import PLAN, TRAINING, certified, measured, sections
from bozzetto.data import Batches, load_batches, load_model
from bozzetto.io import check_output, read
from bozzetto.report import add_sections
from bozzetto.terminal import following, show, spinner
from bozzetto.train import Augmented, CheckpointMismatch

_SHOWN = 8  # batches on which the report compares the tuned network with its target


def _parsed(_: Any, tokens: Sequence[Token]) -> Any:
    """The value of an option written as JSON."""
    try:
        return json.loads(tokens[0].value)
    except json.JSONDecodeError:
        raise ValueError(f'it needs JSON, as {{"nesterov": true}}; got {tokens[0].value}') from None


@dataclass(frozen=True, kw_only=True)
class _Options(bz.Recipe):
    """A recipe as options of the command; what is a callable in the library has a name here.

    Attributes:
        epochs: Passes over DATA.
        optimizer: sgd, adam or adamw.
        settings: Further arguments of the optimizer, as {"nesterov": true}.
        lr: Highest learning rate; by default the optimizer's own, 0.001.
        momentum: Of sgd, and β₁ of adam and adamw.
        weight_decay: By default the optimizer's own: 0.01 for adamw, else 0. Not on biases.
        schedule: cosine, onecycle, step or constant.
        warmup: Share of the steps in which the learning rate rises.
        loss: cross_entropy, mse, cosine, similarity, or auto: by what MODEL and DATA give.
        label_smoothing: Of cross_entropy.
        distillation: Weight of what the target says, in [0, 1], against the labels.
        temperature: Of the class probabilities that are compared with the target's.
        features: Path of a module whose output is compared with the target's; may be repeated.
        feature_weight: Of that term.
        clip: Largest norm of the gradient; none by default.
        ema: Decay of a moving average of the weights, which is then what is delivered.
        dropout: Chance of every dropout; by default each layer's own.
        deliver: The last weights, or the best ones on VAL, from before training on.
        accumulate: Batches whose gradients make one step.
        precision: bfloat16 is faster where the processor has it.
        seed: Of dropout, of the order of images and of how they move.
    """

    optimizer: Annotated[str, Parameter(metavar="NAME")] = "adamw"
    settings: Annotated[
        Mapping[str, Any],
        Parameter(metavar="JSON", show_default=False, converter=_parsed, accepts_keys=False),
    ] = field(default_factory=dict)
    schedule: Annotated[str, Parameter(metavar="NAME")] = "cosine"
    loss: Annotated[str, Parameter(metavar="NAME")] = "auto"
    features: Annotated[Sequence[str], Parameter(metavar="PATH", show_default=False)] = ()


_UNCHANGED = _Options()


@app.command
def train(
    folder: Path,
    /,
    *,
    data: Data,
    out: Folder | None = None,
    val: Annotated[str | None, Parameter(metavar="DATA")] = None,
    distill: bool = True,
    shift: int = 0,
    mirror: Flag = False,
    recipe: Annotated[_Options, Parameter(name="*", negative="", group="Recipe")] = _UNCHANGED,
    batch_size: BatchSize = 64,
    force: Force = False,
    builder: Builder = None,
    as_json: Json = False,
) -> None:
    """Tune a saved network; when interrupted, the same command goes on where it was.

    Args:
        folder: DIR written by compress.
        out: Folder for the tuned network; DIR itself with --force and without this.
        val: Batches to measure the accuracy on after every epoch.
        distill: Also learn from the target; MODEL then needs to return it with trained weights.
        shift: Pixels by which images are shifted at random, anew every pass.
        mirror: Mirror images at random as well.
        recipe: How to train.
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
