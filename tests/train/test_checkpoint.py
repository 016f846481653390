"""Checkpoints: a run that was interrupted ends as one that was not, bit for bit."""

import errno
import math
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim import SGD
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset

from bozzetto import sketch
from bozzetto.optim import Anderson, Interpolatron
from bozzetto.train import CheckpointMismatch, Diverged, Recipe, train
from bozzetto.train.checkpoint import read_checkpoint, write_checkpoint

DRAWS = torch.Generator().manual_seed(0)
X = torch.randn(40, 6, generator=DRAWS)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


class Noisy(Dataset):
    """Augmentation from the global generator, between the draws of dropout."""

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index] + 0.1 * torch.randn(6), Y[index]


def net(width=12):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(), nn.Linear(width, 3)
        )


def loader(**settings):
    return DataLoader(Noisy(), batch_size=6, shuffle=True, **settings)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


class Stop(Exception):
    pass


def stop_at(step):
    def callback(progress):
        if progress.step == step:
            raise Stop

    return callback


def interpolated(groups):
    return Interpolatron(SGD(groups, lr=0.05, momentum=0.9), history=3, every=2)


def mixed(groups):
    return Anderson(SGD(groups, lr=0.05))


RECIPES = {
    "sgd": Recipe(epochs=3, optimizer="sgd", lr=0.05, settings={"nesterov": True}),
    "adamw": Recipe(epochs=3, lr=0.01),
    "adam onecycle": Recipe(epochs=3, optimizer="adam", lr=0.01, schedule="onecycle", warmup=0.3),
    "average": Recipe(epochs=3, optimizer="sgd", lr=0.05, ema=0.9),
    "accumulate": Recipe(epochs=3, lr=0.01, accumulate=2, clip=0.1),
    "interpolatron": Recipe(epochs=3, optimizer=interpolated),
    "anderson": Recipe(epochs=3, optimizer=mixed),
    "bfloat16": Recipe(epochs=3, lr=0.01, precision="bfloat16"),
    "best": Recipe(epochs=3, lr=0.3, deliver="best", dropout=0.2),
}


@pytest.mark.parametrize("generator", [False, True])
@pytest.mark.parametrize("step", [1, 5, 7, 9])
@pytest.mark.parametrize("name", RECIPES)
def test_an_interrupted_run_ends_as_if_it_were_not(name, step, generator, tmp_path):
    recipe, path = RECIPES[name], tmp_path / "new" / "run.safetensors"

    def data():
        seed = torch.Generator().manual_seed(3)
        return loader(generator=seed) if generator else loader()

    whole, model = net(), net()
    expected = train(whole, data(), recipe, val=[(X, Y)])
    with pytest.raises(Stop):
        train(
            model,
            data(),
            recipe,
            val=[(X, Y)],
            checkpoint=path,
            checkpoint_every=2,
            callbacks=[stop_at(step)],
        )
    resumed = net()
    history = train(resumed, data(), recipe, val=[(X, Y)], checkpoint=path)
    assert history == expected
    assert_close(weights(resumed), weights(whole), rtol=0, atol=0)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_distillation_is_resumed_too(tmp_path):
    teacher, whole, model = net(20), net(), net()
    path, recipe = tmp_path / "run", Recipe(epochs=2, lr=0.01)
    train(whole, loader(), recipe, teacher=teacher)
    with pytest.raises(Stop):
        train(model, loader(), recipe, teacher=teacher, checkpoint=path, callbacks=[stop_at(9)])
    train(model, loader(), recipe, teacher=teacher, checkpoint=path)
    assert_close(weights(model), weights(whole), rtol=0, atol=0)


def test_a_complete_run_is_only_delivered_again(tmp_path):
    recipe, path, model, again = RECIPES["average"], tmp_path / "run", net(), net()
    history = train(model, loader(), recipe, checkpoint=path)
    content = path.read_bytes()
    assert train(again, loader(), recipe, checkpoint=path) == history
    assert_close(weights(again), weights(model), rtol=0, atol=0)
    assert path.read_bytes() == content


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from test_checkpoint import *

def kill(progress):
    if progress.step == 9:
        os.kill(os.getpid(), signal.SIGKILL)

train(net(), loader(), RECIPES["average"], checkpoint=Path({path!r}), checkpoint_every=2,
      callbacks=[kill])
"""


def test_a_killed_process_is_resumed_to_the_same_loss_curve(tmp_path):
    path, whole, model = tmp_path / "run", net(), net()
    code = KILLED.format(folder=str(Path(__file__).parent), path=str(path))
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    assert len(read_checkpoint(path)["losses"]) == 8
    history = train(model, loader(), RECIPES["average"], checkpoint=path)
    assert history == train(whole, loader(), RECIPES["average"])
    assert_close(weights(model), weights(whole), rtol=0, atol=0)


@pytest.fixture
def interrupted(tmp_path):
    path = tmp_path / "run"
    with pytest.raises(Stop):
        train(net(), loader(), RECIPES["adamw"], checkpoint=path, callbacks=[stop_at(8)])
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"recipe": replace(RECIPES["adamw"], lr=0.02)}, "recipe: lr is 0.01 in the file and 0.02"),
        ({"recipe": replace(RECIPES["adamw"], optimizer=mixed)}, "adamw in the file.*mixed here"),
        ({"model": net(13)}, r"model: 0.weight is .*\(12, 6\) in the file and .*\(13, 6\) here"),
        ({"model": nn.Sequential(net())}, "another model: 0.0.weight is None in the file"),
        ({"model": net().double()}, "another model: .*float32.*float64"),
        ({"loader": [(X, Y)]}, "loader: steps of an epoch is 7 in the file and 1 here"),
        ({"teacher": net()}, "teacher: given is False in the file and True here"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(interrupted, change, says):
    given = {"model": net(), "loader": loader(), "recipe": RECIPES["adamw"], **change}
    before = weights(given["model"])
    content = interrupted.read_bytes()
    with pytest.raises(CheckpointMismatch, match=says):
        train(**given, checkpoint=interrupted)
    assert_close(weights(given["model"]), before, rtol=0, atol=0)
    assert interrupted.read_bytes() == content


def test_a_checkpoint_of_another_plan_is_refused_though_all_shapes_agree(tmp_path):
    """Sketches are not in the state dict: with another seed the same cores mean something else."""
    wide = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3))
    first, second = (sketch(wide, 0.8, seed=seed)[0] for seed in (1, 2))
    train(first, loader(), RECIPES["adamw"], checkpoint=tmp_path / "run")
    with pytest.raises(CheckpointMismatch, match=r"another architecture: .*seed=\d+.*seed=\d+"):
        train(second, loader(), RECIPES["adamw"], checkpoint=tmp_path / "run")


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "weights"])
def test_a_file_that_is_no_whole_checkpoint_is_refused(interrupted, kind):
    content = interrupted.read_bytes()
    if kind == "weights":
        save_file(net().state_dict(), interrupted)
    else:
        broken = {"empty": b"", "text": b"no checkpoint", "truncated": content[:-100]}
        interrupted.write_bytes(broken[kind])
    with pytest.raises(CheckpointMismatch, match="is not a"):
        train(net(), loader(), RECIPES["adamw"], checkpoint=interrupted)


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    path = tmp_path / "run"
    write_checkpoint(path, {"weights": torch.ones(10)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            write_checkpoint(path, {"weights": torch.ones(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_close(read_checkpoint(path)["weights"], torch.ones(10), rtol=0, atol=0)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_run_whose_disk_fills_up_goes_on_later(interrupted, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    content = interrupted.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            train(net(), loader(), RECIPES["adamw"], checkpoint=interrupted)
    assert interrupted.read_bytes() == content
    assert [p.name for p in interrupted.parent.iterdir()] == [interrupted.name]
    whole, model = net(), net()
    train(whole, loader(), RECIPES["adamw"])
    train(model, loader(), RECIPES["adamw"], checkpoint=interrupted)
    assert_close(weights(model), weights(whole), rtol=0, atol=0)


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(tmp_path):
    path, model = tmp_path / "run", net()
    data = [(X[:20], Y[:20]), (X[20:], Y[20:]), (X * math.nan, Y)]
    with pytest.raises(Diverged, match="at step 3"):
        train(model, data, checkpoint=path, checkpoint_every=1)
    state = read_checkpoint(path)
    assert len(state["losses"]) == 2
    assert all(bool(value.isfinite().all()) for value in state["model"].values())


@pytest.mark.parametrize("every", [1, None])
def test_weights_that_are_not_finite_are_never_written(tmp_path, every):
    path = tmp_path / "run"
    recipe = Recipe(optimizer="sgd", lr=1e38, epochs=1, loss=lambda o, _: 1e3 * o.sum())
    with pytest.raises(Diverged, match="weights"):
        train(net(), [X], recipe, checkpoint=path, checkpoint_every=every)
    assert not path.exists()


TREE = {
    "tensors": [torch.eye(3).T[:2], torch.tensor(2), torch.zeros(0, 4, dtype=torch.bfloat16)],
    "numbers": (1, 0.1, math.inf, True, None, "text"),
    7: {"nested": ({"dtype": torch.float16}, [], (), {})},
    ("a", 1): [[1]],
}


def test_a_tree_comes_back_as_it_was(tmp_path):
    write_checkpoint(tmp_path / "tree", TREE)
    found = read_checkpoint(tmp_path / "tree")
    assert_close(found.pop("tensors"), TREE["tensors"], rtol=0, atol=0)
    assert found == {key: value for key, value in TREE.items() if key != "tensors"}
    assert [type(v) for v in found["numbers"]] == [type(v) for v in TREE["numbers"]]


def test_what_a_checkpoint_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="the state has a function"):
        write_checkpoint(tmp_path / "tree", {"hook": stop_at})
    assert list(tmp_path.iterdir()) == []
