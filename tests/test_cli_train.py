"""The options of `train` are the fields of a recipe, and images may move; against the library."""

import io
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console
from torch.testing import assert_close

import bozzetto as bz
from bozzetto import terminal
from bozzetto.cli import run
from bozzetto.cli.tune import _Options
from bozzetto.train import Augmented

PAINTER = """
import torch
from torch import nn

def network():
    layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(64, 3)]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for seed, value in enumerate(model.parameters()):
            random = torch.Generator().manual_seed(seed)
            value.copy_(torch.randn(value.shape, generator=random) / value[0].numel() ** 0.5)
    return model

def pictures():
    random = torch.Generator().manual_seed(9)
    images = [torch.randn(8, 1, 6, 6, generator=random) for _ in range(3)]
    return [(x, torch.arange(8) % 3) for x in images]
"""
RECIPE = {
    "epochs": 2, "schedule": "onecycle", "ema": 0.9, "optimizer": "sgd", "lr": 0.05,
    "settings": {"nesterov": False, "dampening": 0.5}, "seed": 3, "clip": 1.0,
}  # fmt: skip
TOLD = [
    "--epochs", "2", "--schedule", "onecycle", "--ema", "0.9", "--optimizer", "sgd", "--lr", "0.05",
    "--settings", '{"nesterov": false, "dampening": 0.5}', "--seed", "3", "--clip", "1",
]  # fmt: skip
TRAIN = ["train", "small", "--data", "painter:pictures", "--no-distill"]


@pytest.fixture(autouse=True)
def _small(tmp_path, monkeypatch):
    """The folder `small`, made from a user's module in the current folder."""
    (tmp_path / "painter.py").write_text(PAINTER)
    monkeypatch.chdir(tmp_path)
    made = ["painter:network", "--data", "painter:pictures", "--keep", "0.5", "--out", "small"]
    assert run(["compress", *made]) == 0


@pytest.mark.parametrize("moved", [True, False])
def test_train_does_what_the_library_does_with_that_recipe(moved: bool):
    assert run([*TRAIN, *TOLD, *(["--shift", "1", "--mirror"] if moved else []), "--out", "t"]) == 0
    import painter  # pyright: ignore[reportMissingImports]

    expected = bz.load("small", painter.network())
    loader = painter.pictures()
    loader = Augmented(loader, shift=1, seed=3) if moved else loader
    bz.train(expected, loader, bz.Recipe(**RECIPE))
    found = bz.load("t", painter.network()).state_dict()
    assert_close(dict(found), dict(expected.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (["--ema", "2"], "ema needs to be in (0, 1); got 2.0"),
        (["--schedule", "square"], "schedule needs to be one of"),
        (["--optimizer", "lbfgs"], "optimizer needs to be one of"),
        (["--shift", "-1"], "shift needs to be >= 0; got -1"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_and_nothing_written(told, message, capsys):
    capsys.readouterr()
    assert run([*TRAIN, *told, "--out", "tuned"]) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("tuned").exists()


def test_settings_that_are_no_json_are_refused(capsys):
    capsys.readouterr()
    assert run([*TRAIN, "--settings", "nesterov", "--out", "tuned"]) == 2
    told = capsys.readouterr().err
    assert "Invalid value for --settings: it needs JSON" in told


def test_the_options_of_a_recipe_are_its_fields_and_defaults():
    assert asdict(_Options()) == asdict(bz.Recipe())


def test_progress_tells_the_pace_and_the_time_left(monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(terminal, "_messages", console)
    assert run([*TRAIN, "--epochs", "30", "--out", "tuned"]) == 0
    shown = screen.getvalue()
    assert "epoch 30 of 30, loss " in shown
    assert " samples/s" in shown
    assert "0:00:00" in shown
