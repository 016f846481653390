import json
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from bozzetto.analysis.crash import Byzantine, DroppedConnections, compare_crashes, crash_by_layer
from bozzetto.cli import run

FRAGILE = """
    import torch
    from torch import nn


    def normal(*shape, seed):
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


    def network():
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh())
        model = nn.Sequential(*model, nn.Linear(8, 3))
        with torch.no_grad():
            for seed, value in enumerate(model.parameters()):
                value.copy_(normal(*value.shape, seed=seed) / value[0].numel() ** 0.5)
        return model


    def batches():
        return [(x := normal(20, 6, seed=7), network()(x).argmax(-1))]
"""


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """The name of a user's module in the current folder."""
    (tmp_path / "fragile.py").write_text(textwrap.dedent(FRAGILE))
    monkeypatch.chdir(tmp_path)
    yield "fragile"
    sys.modules.pop("fragile", None)


def asked(capsys, *arguments):
    assert run(["crash", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments):
    assert run(["crash", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    return err


def same(rows, found):
    """JSON's rows are the library's."""
    assert rows == json.loads(json.dumps(found.rows()))


def test_crashes_are_those_of_the_library_and_stay_below_their_bounds(shop, capsys):
    model, data = f"{shop}:network", ["--data", f"{shop}:batches"]
    found = asked(capsys, model, *data, "--p", "0.01,0.1", "--patterns", "300", "--layers")
    user = sys.modules[shop]
    net, batches = user.network(), user.batches()
    expected = compare_crashes({model: net}, batches, [0.01, 0.1], patterns=300, bounded=4)
    same(found["networks"], expected)
    same(found["layers"], crash_by_layer(net, batches, [0.01, 0.1], patterns=300, bounded=4))
    bounds = [row["bound"] for row in found["networks"]]
    few = compare_crashes({model: net}, [batches[0][0][:4]], [0.01, 0.1], patterns=3000).rows()
    assert all(row["error_low"] <= bound for row, bound in zip(few, bounds, strict=True))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["byzantine", "--level", "2"], Byzantine(-2.0, 2.0)),
        (["connections"], DroppedConnections()),
    ],
)
def test_other_faults_have_no_bounds(shop, capsys, options, fault):
    model, data = f"{shop}:network", ["--data", f"{shop}:batches"]
    rest = ["--p", "0.001", "--patterns", "50", "--seed", "3"]
    found = asked(capsys, model, *data, *rest, "--fault", *options)
    user = sys.modules[shop]
    expected = compare_crashes(
        {model: user.network()}, user.batches(), [0.001], fault=fault, patterns=50, seed=3
    )
    same(found["networks"], expected)
    assert {row["bound"] for row in found["networks"]} == {None}


def test_a_small_network_fails_beside_its_target_on_one_page(shop, capsys):
    arguments = [f"{shop}:network", "--data", f"{shop}:batches"]
    assert run(["compress", *arguments, "--keep", "0.7", "--out", "small"]) == 0
    capsys.readouterr()
    options = ["--p", "0.01,0.1", "--patterns", "50", "--channels"]
    found = asked(capsys, "small", *arguments[1:], *options, "--out", "page")
    names = [row["name"] for row in found["networks"]]
    assert names == [f"{shop}:network"] * 2 + ["small"] * 2
    text = Path(found["report"]).read_text(encoding="utf-8")
    assert "Error when parts fail" in text
    assert text.count("<svg") == 1
    options += ["--out", "small"]  # again, beside what compress measured
    assert run(["crash", "small", *arguments[1:], *options]) == 0
    text = Path("small/report.html").read_text(encoding="utf-8")
    assert "Error when parts fail" in text
    assert "Spectra" in text


def test_a_folder_of_something_else_takes_no_sections(shop, capsys):
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("years of work")
    data = ["--data", f"{shop}:batches", "--p", "0.1", "--patterns", "20"]
    assert "or one of ours" in refused(capsys, f"{shop}:network", *data, "--out", "thesis")
    assert [path.name for path in Path("thesis").iterdir()] == ["chapter.tex"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--p", "much"], "probabilities in [0, 1], as 0.001,0.01; got 'much'"),
        (["--p", "1.5"], "got '1.5'"),
        (["--p", "0.1", "--patterns", "0"], "patterns >= 1"),
        (["--p", "0.1", "--fault", "bits", "--layers"], "--layers is for neurons"),
    ],
)
def test_wrong_options_are_told(shop, capsys, options, words):
    assert words in refused(capsys, f"{shop}:network", "--data", f"{shop}:batches", *options)


def test_a_network_without_a_sound_bound_is_measured_and_says_why(shop, capsys):
    layers = "nn.Linear(6, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 3)"
    module = Path("fragile.py")
    module.write_text(
        f"{module.read_text()}\n\ndef normed():\n    return nn.Sequential({layers})\n"
    )
    data = ["--data", f"{shop}:batches"]
    with torch.random.fork_rng():
        found = asked(capsys, f"{shop}:normed", *data, "--p", "0.1", "--patterns", "20")
    assert "no sound bound for LayerNorm" in found["networks"][0]["bound"]
    assert found["networks"][0]["error"] > 0
