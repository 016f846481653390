"""The command's arguments, mutated: an exit code and one line, whatever they are."""

import contextlib
import io
import itertools
import os
import shutil
import sys
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from fuzzing import Tally, fast_folder
from guarding import guard
from mutating import mutate_arguments
from strangers import ngsim

from bozzetto.cli import run
from bozzetto.trajectory import Shape, fresh, save_predictor

SHOP = '''
"""A user's own network and data."""
import torch
from torch import nn

def network():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(torch.linspace(-1, 1, p.numel()).mul(3 + i).sin().view_as(p))
    return model

def batches():
    x = torch.linspace(0, 9, 60).sin().view(10, 6)
    return [(x, network()(x).argmax(-1))] * 2
'''
_DATA = ["--data", "shop_of_trust:batches"]
_MODEL = "shop_of_trust:network"
COMMANDS = [
    ["compress", _MODEL, *_DATA, "--keep", "0.8", "--out", "made", "--seed", "3"],
    ["compress", _MODEL, *_DATA, "--size", "0.9", "--out", "made", "--methods", "lowrank"],
    ["compress", _MODEL, *_DATA, "--keep", "1", "--floor", "0.1", "--metric", "accuracy",
     "--out", "made", "--layers", "0", "--json"],
    ["inspect", _MODEL],
    ["inspect", "saved", "--json"],
    ["inspect", "saved", "--model", _MODEL],
    ["evaluate", "saved", *_DATA, "--metric", "accuracy"],
    ["train", "saved", *_DATA, "--out", "made", "--lr", "0.01"],
    ["crash", "saved", *_DATA, "-p", "0.01,0.1", "--patterns", "2", "--bounded", "1"],
    ["crash", _MODEL, *_DATA, "-p", "0.1", "--patterns", "2", "--fault", "byzantine", "--level",
     "0.5", "--layers", "--out", "made"],
    ["crash", _MODEL, "saved", *_DATA, "-p", "0", "--patterns", "2", "--fault", "bits", "--json"],
    ["kernel", _MODEL, "saved", *_DATA, "--examples", "6", "--ridge", "0.01", "--out", "made"],
    ["report", "saved", "other"],
    ["report", "saved", "other", "--compare", "--out", "made.html", "--json"],
    ["export", "saved", "made.pt2", *_DATA, "--batch", "fixed"],
    ["trajectory", "label", "x.csv", "--every", "1.0"],
    ["trajectory", "train", "x.csv", "--out", "made", "--epochs", "1", "--kind", "alone"],
    ["trajectory", "evaluate", "predictor", "x.csv", "--part", "20"],
    ["trajectory", "predict", "predictor", "x.csv", "--out", "made.json", "--every", "1"],
    ["trajectory", "animate", "predictor", "x.csv", "--out", "made.html", "--scenes", "1"],
    ["--help"],
    ["compress", "--help"],
    ["--version"],
]  # fmt: skip
_LONG = (
    "--patterns",
    "--epochs",
    "--bounded",
    "--batch-size",
    "--examples",
    "--scenes",
)  # may take as long as asked
_OURS = {"shop_of_trust.py", "saved", "other", "predictor", "x.csv", "__pycache__"}
_CODES = {0, 1, 2, 3}


def _call(arguments: list[str]) -> tuple[int, str]:
    """The exit code and what was printed."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        return run(arguments), told.getvalue()


def prepare(folder: Path) -> None:
    """The user's module, a saved network and a recording in a folder."""
    (folder / "shop_of_trust.py").write_text(SHOP)
    (folder / "x.csv").write_text(ngsim(90))
    save_predictor(folder / "predictor", fresh(Shape("joint", 4, 1)))
    for name in ("saved", "other"):
        code, told = _call([*COMMANDS[0][:-4], "--out", name, "--seed", "3"])
        assert code == 0, told


def clean(folder: Path) -> None:
    """Only what `prepare` wrote."""
    for path in folder.iterdir():
        if path.name not in _OURS:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def mutated(random: Random) -> list[str]:
    """A command line that takes no longer than it has to."""
    while True:
        found = mutate_arguments(random.choice(COMMANDS), random)
        named = dict(itertools.pairwise(found))
        sizes = [named.get(option, "2") for option in _LONG]
        own = not any(text.startswith("/") for text in found)
        if own and all(len(size) < 3 for size in sizes):
            return found


def fuzz_arguments(inputs: int, seed: int) -> Tally:
    """Run so many mutated command lines in a folder of their own."""
    tally, here = Tally(), Path.cwd()
    modules = frozenset({"shop_of_trust"})
    with TemporaryDirectory(prefix="trust-", dir=fast_folder()) as place:
        folder = Path(place) / "in"
        folder.mkdir()
        os.chdir(folder)
        try:
            prepare(folder)
            for command in COMMANDS:  # loads what they need before they are watched
                _call(command)
                clean(folder)
            for number in range(inputs):
                found = mutated(Random(f"arguments/{seed}/{number}"))
                sys.modules.pop("shop_of_trust", None)
                named = {text.split(":")[0].split(".")[0] for text in found if ":" in text}
                _count(tally, found, Path(place), modules | named, f"{seed}/{number} {found}")
                clean(folder)
        finally:
            os.chdir(here)
            sys.modules.pop("shop_of_trust", None)
    return tally


def _count(tally: Tally, found: list[str], place: Path, modules: frozenset[str], name: str) -> None:
    try:
        with guard(place, modules=modules):
            code, told = _call(found)
    except BaseException as error:
        tally.faults.append(f"{name}: {type(error).__name__}: {error!s:.300}")
        return
    if code not in _CODES or (code and not told.strip()):
        tally.faults.append(f"{name}: exit code {code} and {told!r:.200}")
    elif code:
        tally.refused += 1
    else:
        tally.accepted += 1
