"""The commands that hand results on, and the card that compress writes."""

import json
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from bozzetto.cli import run

PLANT = """
    import torch
    from torch import nn


    def normal(*shape, seed):
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


    def network():
        model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))
        with torch.no_grad():
            for seed, value in enumerate(model.parameters()):
                value.copy_(normal(*value.shape, seed=seed) / value[0].numel() ** 0.5)
        return model


    def wider():
        return nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 4))


    def batches():
        inputs = [normal(20, 12, seed=seed) for seed in range(3)]
        return [(x, network()(x).argmax(-1)) for x in inputs]
"""


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    """A folder with a user's module `plant` and networks of it: half, quarter, other."""
    folder = tmp_path_factory.mktemp("plant")
    (folder / "plant.py").write_text(textwrap.dedent(PLANT))
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.chdir(folder)
        for out, model, keep in (
            ("half", "network", "0.5"), ("quarter", "network", "0.3"), ("other", "wider", "0.5"),
        ):  # fmt: skip
            more = ["--keep", keep, "--out", out, "--metric", "accuracy"]
            assert run(["compress", f"plant:{model}", "--data", "plant:batches", *more]) == 0
    yield folder
    sys.modules.pop("plant", None)


@pytest.fixture(autouse=True)
def _there(plant, monkeypatch, capsys):
    monkeypatch.chdir(plant)
    capsys.readouterr()


def answer(capsys, *arguments):
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments):
    assert run([*arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_a_page_is_made_again_from_what_was_kept(capsys):
    before = Path("half/report.html").read_bytes()
    Path("half/report.html").unlink()
    answer(capsys, "report", "half")
    assert Path("half/report.html").read_bytes() == before


def test_a_network_without_measurements_shows_its_plan(capsys, tmp_path):
    for name in ("plan.json", "model.safetensors"):
        (tmp_path / name).write_bytes(Path("half", name).read_bytes())
    answer(capsys, "report", str(tmp_path))
    text = (tmp_path / "report.html").read_text()
    assert "The plan" in text
    assert text.count("<svg") == 1


def test_networks_of_one_target_stand_on_one_page(capsys, tmp_path):
    page = tmp_path / "both.html"
    found = answer(capsys, "report", "--compare", "half", "quarter", "--out", str(page))
    target, *small = found["networks"]
    assert target["params_kept"] == 1
    for row, name in zip(small, ("half", "quarter"), strict=True):
        plan = json.loads(Path(name, "plan.json").read_text())["plan"]
        assert (row["network"], row["params"]) == (name, plan["small"]["params"])
        assert {"accuracy", "error", "flops_kept"} <= row.keys()
    text = page.read_text()
    for title in ("Size against quality", "Latency", "Size of each layer"):
        assert f"{title}</h2>" in text
    again = ["report", "--compare", "half", "quarter", "--out", str(page)]
    assert "--force replaces it" in refused(capsys, *again)
    answer(capsys, *again, "--force")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--compare", "half"], "two folders or more; got 1"),
        (["--compare", "half", "other"], "networks of one target"),
        (["--compare", "half", "nowhere"], "has no plan.json"),
        (["nowhere"], "is made of a saved network"),
    ],
)
def test_reports_of_nothing_are_refused(capsys, arguments, words):
    assert words in refused(capsys, "report", *arguments)
    assert not Path("comparison.html").exists()
    assert not Path("nowhere").exists()


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # inside torch.export
def test_an_exported_network_computes_what_the_saved_one_does(capsys, tmp_path):
    pytest.importorskip("onnxruntime")
    import onnxruntime

    import bozzetto as bz

    file = tmp_path / "half.onnx"
    found = answer(capsys, "export", "half", str(file), "--data", "plant:batches")
    assert found["bytes"] == file.stat().st_size
    plant = sys.modules["plant"]
    x = plant.normal(7, 12, seed=9)
    session = onnxruntime.InferenceSession(file)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), bz.load("half", plant.network())(x).detach())


@pytest.mark.parametrize(
    ("file", "more", "words"),
    [
        ("half.onnx", ["--opset", "11"], "opset >= 18; got 11"),
        ("half.tflite", [], ".onnx or .pt2"),
    ],
)
def test_an_export_that_cannot_be_leaves_nothing(capsys, tmp_path, file, more, words):
    out = str(tmp_path / file)
    assert words in refused(capsys, "export", "half", out, "--data", "plant:batches", *more)
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_is_not_installed_is_told_in_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    out = str(tmp_path / "half.onnx")
    told = refused(capsys, "export", "half", out, "--data", "plant:batches")
    assert "pip install 'bozzetto[onnx]'" in told


def test_a_card_comes_with_a_licence_only(capsys, tmp_path):
    arguments = ["compress", "plant:network", "--data", "plant:batches", "--keep", "0.5"]
    arguments += ["--out", str(tmp_path / "small")]
    assert "needs --license" in refused(capsys, *arguments, "--base", "someone/plant")
    wrong = refused(capsys, *arguments, "--license", "do as you like")
    assert "licence of the source model" in wrong
    assert list(tmp_path.iterdir()) == []
    answer(capsys, *arguments, "--license", "mit", "--base", "someone/plant")
    card = (tmp_path / "small" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\nlibrary_name: bozzetto\nbase_model: someone/plant\n")
    assert "## Size against quality" in card
