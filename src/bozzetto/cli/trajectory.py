"""The commands of the application: trajectory train, evaluate, label, predict, animate."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cyclopts import App

from bozzetto import trajectory as tj
from bozzetto.cli.app import Force, Json, Names, app
from bozzetto.terminal import following, show, watched

motion = App(
    name="trajectory",
    help="Predict how the vehicles of a scene move and who goes before whom.\n\n"
    "DATA is a file of recordings or a folder of such files: CommonRoad or SUMO FCD (.xml), NGSIM "
    "(.csv), Argoverse 2 (.parquet), tracks (.npz). Recordings are chosen by patterns of names.",
)
app.command(motion)


@motion.command
def train(
    data: Path,
    /,
    *,
    out: Path,
    test: Names = None,
    kind: tj.Kind = "joint",
    epochs: int = tj.RECIPE.epochs,
    every: float = 0.5,
    part: float = 60.0,
    seed: int = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train a network on recordings, and measure it on those that match --test.

    Args:
        data: Recordings.
        out: Folder for the network.
        test: Pattern of recordings that judge and do not teach; may be repeated.
        kind: joint (with modes), graph (without modes) or alone (without other vehicles).
        epochs: Passes over the scenes and their mirror images.
        every: Seconds between scenes.
        part: Longer recordings are cut into parts of so many seconds, named NAME/0, NAME/1, …
        seed: Of the weights and of the order of scenes.
    """
    tj.check_folder(out, force=force)
    found = _recordings(data, part=part)
    chosen = tj.split(found, test=test) if test else tj.Split(tuple(found), (), ())
    scenes = [*tj.scenes_of(watched(chosen.train, "reading scenes"), every=every)]
    graphs = [*map(tj.graph_of, watched([*scenes, *map(tj.mirrored, scenes)], "labelling"))]
    predictor = tj.fresh(tj.Shape(kind=kind), seed=seed)
    recipe = replace(tj.RECIPE, epochs=epochs, seed=seed)
    with following() as follow:
        history = tj.fit(predictor, graphs, recipe, callbacks=[follow])
    tj.save_predictor(out, predictor.eval())
    head = {"folder": str(out), "params": sum(p.numel() for p in predictor.parameters())}
    tables = {"epochs": history.rows()}
    judge = [*tj.scenes_of(chosen.test)]
    if judge:
        tables |= _scores(predictor, _graphs(judge))
    show(as_json, head | _repaired(found) | _counted([*scenes, *judge]), tables)


@motion.command
def evaluate(
    folder: Path,
    data: Path,
    /,
    *,
    test: Names = None,
    part: float = 60.0,
    as_json: Json = False,
) -> None:
    """Measure a network, constant velocity and constant turn rate on recordings.

    Args:
        folder: Written by train.
        data: Recordings.
        test: Pattern of recordings that judge; may be repeated. All by default.
        part: Longer recordings are cut into parts of so many seconds, named NAME/0, NAME/1, …
    """
    predictor = tj.load_predictor(folder)
    found = tj.matching(_recordings(data, part=part), test or ["*"])
    scenes = [*tj.scenes_of(found)]
    graphs = _graphs(scenes)
    tables = _scores(predictor, graphs)
    measured = {name: tj.score(b, graphs, modes=False) for name, b in tj.BASELINES.items()}
    tables["baselines"] = [{"baseline": name} | s.rows()[0] for name, s in measured.items()]
    show(as_json, {"folder": str(folder)} | _repaired(found) | _counted(scenes), tables)


@motion.command
def label(data: Path, /, *, every: float = 1.0, as_json: Json = False) -> None:
    """Count the interaction modes that recordings show, and list the rows that were no good.

    Args:
        data: Recordings.
        every: Seconds between scenes.
    """
    found = _recordings(data, part=None)
    rows = [tj.counted(recording, every=every) for recording in watched(found, "labelling")]
    bad = [{"bad_rows": str(row)} for recording in found for row in recording.bad]
    show(as_json, _repaired(found), {"recordings": rows} | ({"bad": bad} if bad else {}))


@motion.command
def predict(folder: Path, data: Path, /, *, out: Path, every: float = 1.0) -> None:
    """Write predicted paths and modes, one scene a line as JSON.

    Args:
        folder: Written by train.
        data: Recordings.
        out: File to write.
        every: Seconds between scenes.
    """
    predictor = tj.load_predictor(folder)
    views = [*_views(predictor, _recordings(data, None), every)]
    lines = [json.dumps(view.to_dict()) for view in views]
    out.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    show(False, {"file": str(out)} | _counted(view.scene for view in views), {})


@motion.command
def animate(
    folder: Path, data: Path, /, *, out: Path, scenes: int = 6, recording: str = "*"
) -> None:
    """Write a page of scenes in motion, with predicted paths and modes as arrows.

    Args:
        folder: Written by train.
        data: Recordings.
        out: Page to write.
        scenes: How many to show, at equal distances in time.
        recording: Pattern of the recordings to show.
    """
    if scenes < 1:
        raise ValueError(f"a page needs at least one scene; got --scenes {scenes}")
    predictor = tj.load_predictor(folder)
    found = tj.matching(_recordings(data, None), [recording])
    views = [*_views(predictor, found, 1.0)]
    step = max(1, len(views) // scenes)
    tj.write_page(out, views[step // 2 :: step][:scenes], title=f"Predicted scenes of {data.stem}")
    show(False, {"page": str(out)}, {})


def _recordings(data: Path, part: float | None) -> list[tj.Recording]:
    found = [*watched(tj.load(data), "reading")]
    return found if part is None else tj.cut(found, seconds=part)


def _repaired(found: Iterable[tj.Recording]) -> dict[str, Any]:
    return {"bad_rows": sum(len(recording.bad) for recording in found)}


def _counted(scenes: Iterable[tj.Scene]) -> dict[str, Any]:
    """How many scenes, and agents beyond the most that a scene holds."""
    left_out = [scene.left_out for scene in scenes]
    return {"scenes": len(left_out), "left_out": sum(left_out)}


def _graphs(scenes: Sequence[tj.Scene]) -> list[tj.Graph]:
    return [*map(tj.graph_of, watched(scenes, "labelling"))]


def _scores(predictor: tj.Predictor, graphs: Sequence[tj.Graph]) -> dict[str, Any]:
    joint = predictor.shape.kind == "joint"
    found = tj.score(lambda graph: predictor(*graph.inputs), graphs, modes=joint)
    return {"errors": found.rows()} | ({"modes": found.mode_rows()} if joint else {})


def _views(
    predictor: tj.Predictor, found: Iterable[tj.Recording], every: float
) -> Iterator[tj.View]:
    for recording in found:
        for scene in tj.scenes_of([recording], every=every):
            yield tj.view(scene, recording.lanes, lambda graph: predictor(*graph.inputs))
