"""Everything that reads a file or a value from elsewhere, each with valid inputs to mutate."""

import io
import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from fuzzing import Change, Stranger
from mutating import as_json, mutate_bytes, mutate_json, mutate_safetensors
from strange_architectures import ARCHITECTURES, resealed
from torch import nn

import bozzetto as bz
from bozzetto.images import image_batches
from bozzetto.regress.sources import checked_batch
from bozzetto.report import Section, add_sections, read_sections, write_report
from bozzetto.train.checkpoint import read_checkpoint, write_checkpoint
from bozzetto.trajectory import fresh, load_predictor, save_predictor
from bozzetto.trajectory import load as recordings
from bozzetto.trajectory.scenes import scenes_of


def plain() -> nn.Module:
    layers = [nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 6)]
    return nn.Sequential(*layers)


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.Flatten(1))


MODELS = {"plain": plain, "convolutional": convolutional}


def _saved(folder: Path, kind: str, keep: float, method: str) -> None:
    model = MODELS[kind]()
    shape = (20, 16) if kind == "plain" else (4, 3, 8, 8)
    bz.save(folder / "saved", *bz.compress(model, keep, [torch.randn(shape)], methods=method))


def _saved_network(kind: str, keep: float, method: str) -> Stranger:
    def read(folder: Path) -> object:
        model = MODELS[kind]()
        small = bz.load(folder / "saved", model)
        more = sum(p.numel() for p in small.parameters()) - sum(
            p.numel() for p in model.parameters()
        )
        assert more < 0, "a saved network is smaller than its target"
        return small

    changes = {".json": as_json(mutate_json), ".safetensors": mutate_safetensors}
    return Stranger(lambda f: _saved(f, kind, keep, method), read, changes, resealed)


def _read_plan(folder: Path) -> object:
    plan = bz.Plan.from_json((folder / "plan.json").read_text(encoding="utf-8", errors="replace"))
    assert plan.to_json()
    assert plan.rows() is not None
    return {resource: plan.kept(resource) for resource in plan.target if resource in plan.small}


def _write_plan(folder: Path) -> None:
    _, plan = bz.sketch(plain(), 0.5)
    (folder / "plan.json").write_text(plan.to_json())


def _text(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def _read_recordings(folder: Path) -> object:
    """All recordings with the scenes in them, whose values must be finite."""
    found = list(chain.from_iterable(recordings(f) for f in _data_files(folder)))
    for scene in scenes_of(found):
        assert np.isfinite(scene.past).all(), "positions are finite"
        assert np.isfinite(scene.heading).all(), "headings are finite"
        assert (scene.size > 0).all(), "sizes are positive"
    return found


def _data_files(folder: Path) -> list[Path]:
    beside = (".net.xml", ".json")
    return sorted(f for f in folder.iterdir() if not f.name.endswith(beside))


_NGSIM = "Vehicle_ID,Frame_ID,Global_Time,Local_X,Local_Y,v_Length,v_Width,v_Class,Location\n"
_FCD = (
    '<timestep time="{}"><vehicle id="a" x="{}" y="0" angle="90" type="car" speed="10"/></timestep>'
)
_NET = """<net><edge id="e"><lane id="e_0" shape="0,0 50,0"/></edge>
<edge id=":c"><lane id=":c_0" shape="50,0 60,0"/></edge>
<connection from="e" to="f" fromLane="0" toLane="0" via=":c_0"/></net>"""
_STATE = (
    "<{0}><position><point><x>{1}</x><y>0.5</y></point></position><time><exact>{2}</exact></time>"
    "<orientation><exact>0.0</exact></orientation></{0}>"
)
_LANELET = (
    '<lanelet id="{}"><leftBound><point><x>0</x><y>2</y></point><point><x>50</x><y>2</y></point>'
    "</leftBound><rightBound><point><x>0</x><y>-2</y></point><point><x>50</x><y>-2</y></point>"
    '</rightBound><successor ref="{}"/></lanelet>'
)


def ngsim(frames: int = 25) -> str:
    """Two vehicles, ten frames a second."""
    rows = [
        f"{v},{i},{1000 + 100 * i},{10 * v},{50 + 5 * i},15,6,2,us"
        for v in (1, 2)
        for i in range(frames)
    ]
    return _NGSIM + "\n".join(rows) + "\n"


def _commonroad() -> str:
    states = "".join(_STATE.format("state", i, i) for i in range(1, 25))
    obstacle = (
        '<dynamicObstacle id="7"><type>car</type><shape><rectangle><length>4.5</length><width>2'
        f"</width></rectangle></shape>{_STATE.format('initialState', 0, 0)}<trajectory>{states}"
        "</trajectory></dynamicObstacle>"
    )
    lanes = _LANELET.format(1, 2) + _LANELET.format(2, 1)
    return f'<commonRoad timeStepSize="0.1" benchmarkID="C-X">{lanes}{obstacle}</commonRoad>'


def _fcd(folder: Path) -> None:
    steps = "\n".join(_FCD.format(i / 10, i) for i in range(25))
    (folder / "x.fcd.xml").write_text(f"<fcd-export>{steps}</fcd-export>")
    (folder / "x.net.xml").write_text(_NET)


def arrays() -> dict[str, np.ndarray]:
    """An npz file's: one recording of one track, and a map of one lane."""
    time = np.arange(25.0)
    return {
        "xyhv": np.column_stack([time, 0 * time, 0 * time, 0 * time + 10]),
        "offset": np.array([0, 25]), "rec": np.array([0]), "start": np.array([0]),
        "size": np.array([[4.0, 2.0]]), "kind": np.array([0]), "id": np.array(["a"]),
        "meta": np.array(json.dumps([{"name": "r", "group": "g", "lanekey": "k"}])),
        "hz": np.array(10), "lane_xy": np.array([[0.0, 0.0], [50.0, 0.0]]),
        "lane_offset": np.array([0, 2]), "lane_key": np.array([0]), "lane_id": np.array([5]),
        "lane_succ": np.array(json.dumps([[5]])), "lane_keys": np.array(json.dumps(["k"])),
    }  # fmt: skip


def _changed_npz(data: bytes, random: Random) -> bytes:
    """Another array in a whole archive, or the bytes."""
    if random.random() < 0.3:
        return mutate_bytes(data, random)
    found = arrays()
    name = random.choice(list(found))
    value = found[name]
    match random.randrange(6):
        case 0:
            del found[name]
        case 1:
            found[name] = value[..., :-1] if value.ndim else value.reshape(1)
        case 2:
            found[name] = np.array(json.dumps(random.choice((None, 1, [], {}, ["x"], [{}], [[9]]))))
        case 3 if value.dtype.kind in "if":
            found[name] = value.astype(random.choice((np.int8, np.float32, np.float64, complex)))
        case 4 if value.dtype.kind in "if":
            made = value.copy().reshape(-1)
            made[random.randrange(made.size)] = random.choice((-1, 0, 7, 2**40, -(2**60), 100))
            found[name] = made.reshape(value.shape)
        case _:
            text = mutate_bytes(str(value.reshape(-1)[0]).encode(), random).decode(errors="replace")
            found[name] = np.array(text)
    made = io.BytesIO()
    np.savez(made, **found)  # pyright: ignore[reportArgumentType]
    return made.getvalue()


def _argoverse(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [
        {"track_id": name, "object_type": kind, "timestep": step, "position_x": float(step),
         "position_y": 3.0, "heading": 0.0, "city": "austin"}
        for name, kind in [("a", "vehicle"), ("b", "bus")]
        for step in range(25)
    ]  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "scenario_1.parquet")
    side = [{"x": 0.0, "y": 2.0}, {"x": 50.0, "y": 2.0}]
    lane = {"id": 5, "successors": [6], "left_lane_boundary": side, "right_lane_boundary": side}
    after = {"id": 6, "successors": [], "lane_type": "VEHICLE", "centerline": side}
    lanes = json.dumps({"lane_segments": {"5": lane, "6": after}})
    (folder / "log_map_archive_1.json").write_text(lanes)


def _retyped_parquet(data: bytes, random: Random) -> bytes:
    """A column of another type, in a whole file, or the bytes."""
    import pyarrow
    from pyarrow import parquet

    if random.random() < 0.7:
        return mutate_bytes(data, random)
    table = parquet.read_table(io.BytesIO(data))
    place = random.randrange(table.num_columns)
    values = random.choice(
        ([None], ["x"], [b"x"], [[1]], [{"a": 1}], [1e300], [2**62], [-1], [True])
    )
    column = pyarrow.array(values * table.num_rows)
    made = io.BytesIO()
    table = table.set_column(place, table.column_names[place], column)
    parquet.write_table(table, made)
    return made.getvalue()


def _image_parquet(folder: Path) -> None:
    import PIL.Image
    import pyarrow
    from pyarrow import parquet

    made = io.BytesIO()
    PIL.Image.new("RGB", (4, 3), (9, 0, 8)).save(made, "PNG")
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    pictures = pyarrow.array([{"bytes": made.getvalue(), "path": None}] * 4, kind)
    table = pyarrow.table({"image": pictures, "label": pyarrow.array([0, 1, 0, 1])})
    parquet.write_table(table, folder / "x.parquet")


def _image_folder(folder: Path) -> None:
    import PIL.Image

    for name in ("a", "b"):
        (folder / name).mkdir()
        for number, suffix in enumerate(("png", "jpg", "gif", "bmp", "ppm", "tif", "webp")):
            PIL.Image.new("RGB", (4, 3), (9 * number, 0, 8)).save(
                folder / name / f"{number}.{suffix}"
            )


def _read_images(folder: Path) -> object:
    file = folder / "x.parquet"
    for x, labels in image_batches(file if file.exists() else folder, size=8):
        assert bool(((x >= 0) & (x <= 1)).all()), "pictures are in [0, 1]"
        assert len(x) == len(labels)
    return None


def _checkpoint(folder: Path) -> None:
    tree = {
        "of": {"recipe": {"epochs": 2}}, "place": (1, 2), "average": None, "kind": torch.float32,
        "model": {"weight": torch.ones(3, 2)}, "epochs": [{"loss": 1.5}], 3: [True, "x"],
    }  # fmt: skip
    write_checkpoint(folder / "x.training", tree)


def _predictor(folder: Path) -> None:
    save_predictor(folder / "p", fresh(_small_shape()))


def _small_shape() -> Any:
    from bozzetto.trajectory import Shape

    return Shape("joint", 4, 1)


def _read_recipe(folder: Path) -> object:
    return bz.Recipe.from_dict(_parsed(folder / "recipe.json")).to_dict()


def _read_budget(folder: Path) -> object:
    data = _parsed(folder / "budget.json")
    values = list(data.values()) if isinstance(data, dict) else [data]
    return bz.Budget(*values[:4]).scaled(0.5)


def _read_shard(folder: Path) -> object:
    return checked_batch(_parsed(folder / "shard.json"))


def _parsed(file: Path) -> Any:
    """JSON as a program might have read it; what is no JSON is a string."""
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        return json.loads(text)
    except ValueError:
        return text


def _report(folder: Path) -> None:
    _, plan = bz.sketch(plain(), 0.5)
    add_sections(folder / "report", [Section("The plan", plan), Section("Again", plan, "text")])


def _read_report(folder: Path) -> object:
    found = read_sections(folder / "report")
    return write_report(folder / "report" / "page.html", found, title="read")


_SHARD = json.dumps([[[1.0, 2.0], [3.0, 4.0]], [1.0, 2.0], [1.0, 0.5]])
_RECIPE = json.dumps(bz.Recipe().to_dict())
_BUDGET = json.dumps({"params": 0.5, "flops": None, "bytes": 0.25, "latency": 1})
_JSON: dict[str, Change] = {".json": as_json(mutate_json)}
_PARQUET = _JSON | {".parquet": _retyped_parquet}

STRANGERS: dict[str, Stranger] = {
    "load: low rank": _saved_network("plain", 0.6, "lowrank"),
    "load: sketched": _saved_network("plain", 0.6, "sketched"),
    "load: signs": _saved_network("plain", 0.4, "signs"),
    "load: hybrid": _saved_network("plain", 0.5, "hybrid"),
    "load: Tucker": _saved_network("convolutional", 0.5, "tucker"),
    "plan": Stranger(_write_plan, _read_plan, _JSON),
    "recipe": Stranger(_text("recipe.json", _RECIPE), _read_recipe, _JSON),
    "budget": Stranger(_text("budget.json", _BUDGET), _read_budget, _JSON),
    "shard": Stranger(_text("shard.json", _SHARD), _read_shard, _JSON),
    "checkpoint": Stranger(
        _checkpoint, lambda f: read_checkpoint(f / "x.training"), {".training": mutate_safetensors}
    ),
    "predictor": Stranger(
        _predictor,
        lambda f: load_predictor(f / "p"),
        {".json": as_json(mutate_json), ".safetensors": mutate_safetensors},
    ),
    "NGSIM": Stranger(_text("x.csv", ngsim()), _read_recordings),
    "CommonRoad": Stranger(_text("x.xml", _commonroad()), _read_recordings),
    "SUMO": Stranger(_fcd, _read_recordings),
    "npz": Stranger(
        lambda f: np.savez(f / "x.npz", **arrays()),  # pyright: ignore[reportArgumentType]
        _read_recordings,
        {".npz": _changed_npz},
    ),
    "Argoverse": Stranger(_argoverse, _read_recordings, _PARQUET),
    "images: parquet": Stranger(_image_parquet, _read_images, _PARQUET),
    "images: folder": Stranger(_image_folder, _read_images),
    "report": Stranger(_report, _read_report, _JSON, modules=frozenset({"jinja2"})),
    **ARCHITECTURES,
}  # fmt: skip
