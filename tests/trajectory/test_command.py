import json
import shutil

import pytest

from bozzetto.cli import run
from bozzetto.trajectory import Shape, fresh, load_predictor, save_predictor


@pytest.fixture(scope="module")
def data(driving, tmp_path_factory):
    """A folder of the fixture alone."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copy(driving / "fixture.npz", folder / "fixture.npz")
    return folder / "fixture.npz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained network."""
    path = tmp_path_factory.mktemp("network") / "n"
    save_predictor(path, fresh(Shape(width=16)).eval())
    return path


def told(capsys, *tokens):
    assert run([str(token) for token in ("trajectory", *tokens)]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("kind", ["joint", "alone"])
def test_train_writes_a_network_and_measures_it(data, tmp_path, capsys, kind):
    out = tmp_path / "n"
    options = ["--kind", kind, "--epochs", 1, "--every", 4, "--test", "SUMO-merge*"]
    found = told(capsys, "train", data, "--out", out, *options, "--json")
    assert found["params"] == sum(p.numel() for p in load_predictor(out).parameters())
    assert [row["agents"] for row in found["errors"]] == ["all", "moving", "yielding", "crossing"]
    assert ("modes" in found) == (kind == "joint")
    assert len(found["epochs"]) == 1
    assert (found["scenes"] > 10, found["left_out"]) == (True, 0)
    assert run(["trajectory", "train", str(data), "--out", str(out)]) == 1
    assert "is not empty" in capsys.readouterr().err


def test_evaluate_compares_with_the_baselines(data, folder, capsys):
    found = told(capsys, "evaluate", folder, data, "--test", "SUMO-*", "--json")
    assert [row["baseline"] for row in found["baselines"]] == [
        "constant velocity",
        "constant turn rate",
    ]
    assert found["errors"][0]["count"] == found["baselines"][0]["count"]
    assert [row["mode"] for row in found["modes"]] == ["ignoring", "going", "yielding"]


def test_label_counts_modes_and_names_bad_rows(tmp_path, capsys):
    head = "Vehicle_ID,Global_Time,Local_X,Local_Y,v_Length,v_Width,v_Class"
    lines = [
        f"{v},{100 * i},0,{gap + 5 * i},15,6,2" for v, gap in [(1, 0), (2, 60)] for i in range(80)
    ]
    (tmp_path / "cars.csv").write_text("\n".join([head, *lines, "3,x,0,0,15,6,2"]))
    found = told(capsys, "label", tmp_path / "cars.csv", "--json")
    (row,) = found["recordings"]
    assert row["recording"] == "cars"
    assert row["going"] == row["yielding"] > 0
    assert found["bad_rows"] == 1
    assert "cars.csv:162: no vehicle" in found["bad"][0]["bad_rows"]


def test_predict_writes_a_scene_a_line(data, folder, tmp_path):
    out = tmp_path / "p.jsonl"
    assert (
        run(["trajectory", "predict", str(folder), str(data), "--out", str(out), "--every", "30"])
        == 0
    )
    scenes = [json.loads(line) for line in out.read_text().splitlines()]
    assert {scene["recording"] for scene in scenes} >= {"MONA-East", "SUMO-merge-0"}
    assert all(len(path) == 25 for scene in scenes for path in scene["paths"].values())


def test_animate_writes_a_page(data, folder, tmp_path):
    out = tmp_path / "p.html"
    tokens = ["animate", folder, data, "--out", out, "--scenes", 2, "--recording", "SUMO-merge*"]
    assert run(["trajectory", *map(str, tokens)]) == 0
    text = out.read_text()
    assert text.count('"title":"SUMO-merge-0, frame') == 2


@pytest.mark.parametrize(
    ("tokens", "what"),
    [
        (["evaluate", "FOLDER", "none.npz"], "no recordings at none.npz"),
        (["evaluate", "none", "DATA"], "holds no network"),
        (
            ["animate", "FOLDER", "DATA", "--out", "x.html", "--recording", "z"],
            "no recording matches",
        ),
        (["animate", "FOLDER", "DATA", "--out", "x", "--scenes", "0"], "at least one scene"),
    ],
)
def test_bad_input_is_said_in_a_line(data, folder, capsys, tokens, what):
    given = {"FOLDER": str(folder), "DATA": str(data)}
    assert run(["trajectory", *[given.get(token, token) for token in tokens]]) == 1
    assert what in capsys.readouterr().err
