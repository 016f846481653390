"""A job that dies: a forked process killed with SIGKILL at a moment of a chosen stage, run again.

The job is what a night's work is made of: calibrate, plan, fit, save, tune with a checkpoint after
every step, save again in place of what is there.

    python tests/trust/kills.py 100 7   # 100 deaths, seed 7; prints JSON

The process that forks is a new one with one thread: it has solved no knapsack, whose solver keeps
threads that a fork does not copy.
"""

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

import bozzetto as bz
from bozzetto.io import read
from bozzetto.menu import menu
from bozzetto.train.checkpoint import read_checkpoint

STAGES = ("calibrate", "plan", "fit", "save", "tune", "replace")
RECIPE = bz.Recipe(epochs=3, lr=1e-2, seed=5, ema=0.9)
Say = Callable[[int], None]


def target() -> nn.Module:
    """Dropout makes a resumed run show whether its random state was kept."""
    layers = [nn.Linear(24, 48), nn.ReLU(), nn.Dropout(0.2), nn.Linear(48, 24), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(24, 4))
    with torch.no_grad():
        for place, p in enumerate(model.parameters()):
            p.copy_((torch.arange(p.numel()) * (place + 1.7)).sin().view_as(p) / 5)
    return model.eval()


def batches() -> list[tuple[Tensor, Tensor]]:
    x = (torch.arange(6 * 32 * 24) * 0.37).sin().view(6, 32, 24)
    return [(part, part.sum(-1).gt(0).long()) for part in x]


def loadable(folder: Path) -> bool:
    """Whether a whole network stands there; half of one is an error."""
    if not folder.exists():
        return False
    bz.load(folder, target())
    return True


def job(folder: Path, say: Say) -> None:
    """All stages; what an earlier run left whole is not done again."""
    model, data = target(), batches()
    first, run = folder / "small", folder / "run.training"
    if not loadable(first):
        say(0)
        stats = bz.collect(model, data)
        say(1)
        made = bz.plan(model, stats, bz.Budget(params=0.5))
        say(2)
        small = bz.rebuild(model, made, stats)
        say(3)
        bz.save(first, small, made)
    made, small = read(first).plan, bz.load(first, model)
    say(4)
    bz.train(small, data, RECIPE, checkpoint=run, checkpoint_every=1)
    say(5)
    bz.save(folder / "tuned", small, made, force=True)
    bz.save(folder / "tuned", small, made, force=True)  # in place of itself
    run.unlink(missing_ok=True)


def warm() -> None:
    """Load what the job needs, so that its children need not."""
    model, data = target(), batches()
    stats = bz.collect(model, data)
    menu(model, stats)
    with TemporaryDirectory() as folder:
        small, made = bz.sketch(model, 0.5)
        bz.save(Path(folder) / "x", small, made)
        bz.train(bz.load(Path(folder) / "x", model), data, replace(RECIPE, epochs=1))


def undisturbed(folder: Path) -> tuple[dict[str, bytes], list[float]]:
    """What a job leaves that nobody kills, and how long its stages take."""
    folder.mkdir()
    child, reading = _started(folder)
    marks: list[float] = []
    while os.read(reading, 1):
        marks.append(time.perf_counter())
    os.close(reading)
    assert not os.waitpid(child, 0)[1], "the job fails by itself"
    marks.append(time.perf_counter())
    return contents(folder), [b - a for a, b in itertools.pairwise(marks)]


def contents(folder: Path) -> dict[str, bytes]:
    """All files by name but hidden ones, which a later run neither reads nor needs."""
    files = [f for f in folder.rglob("*") if f.is_file()]
    names = {str(f.relative_to(folder)): f for f in files}
    shown = {name: f for name, f in names.items() if not name.startswith(".")}
    return {name: f.read_bytes() for name, f in shown.items()}


@dataclass
class Deaths:
    """How often jobs died, in which stage, and what was wrong afterwards."""

    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    finished: int = 0
    faults: list[str] = field(default_factory=list)


def _started(folder: Path) -> tuple[int, int]:
    """A child that does the job, and where it tells its stages."""
    reading, writing = os.pipe()
    if child := os.fork():
        os.close(writing)
        return child, reading
    status = 1
    try:
        os.close(reading)
        job(folder, lambda now: os.write(writing, bytes([now])) and None)
        status = 0
    finally:
        os._exit(status)


def attempt(folder: Path, stage: int, delay: float) -> tuple[str | None, bool]:
    """Run the job in a child that is killed so long after a stage began.

    Returns:
        The stage in which it was killed, None if it ended before; whether it ended well.
    """
    child, reading = _started(folder)
    now = -1
    while now < stage and (said := os.read(reading, 1)):
        now = said[0]
    if now >= 0:
        time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    while said := os.read(reading, 1):
        now = said[0]
    os.close(reading)
    if os.WIFSIGNALED(status):
        return STAGES[max(now, 0)], False
    return None, os.WEXITSTATUS(status) == 0


def check(folder: Path, wanted: dict[str, bytes], *, ended: bool) -> str | None:
    """What is wrong with a folder after a death or an end."""
    try:
        for name in ("small", "tuned"):
            loadable(folder / name)
        if (run := folder / "run.training").exists():
            read_checkpoint(run)
    except ValueError as error:
        return f"half-written: {error}"
    found = contents(folder)
    odd = [n for n, data in found.items() if n in wanted and data != wanted[n]]
    if odd:
        return f"other than undisturbed: {odd}"
    if ended and found.keys() != wanted.keys():
        return f"files {sorted(found.keys() ^ wanted.keys())}"
    return None


def kill_jobs(kills: int, seed: int) -> Deaths:
    """Jobs that are killed and run again until so many have died."""
    warm()
    deaths, random = Deaths(), Random(seed)
    with TemporaryDirectory(prefix="trust-") as place:
        wanted, times = undisturbed(Path(place) / "undisturbed")
        again, _ = undisturbed(Path(place) / "again")
        if again != wanted:
            deaths.faults.append("two undisturbed runs differ")
        number = 0
        while sum(deaths.kills.values()) < kills:
            folder = Path(place) / str(number)
            folder.mkdir(exist_ok=True)
            stage = random.randrange(len(STAGES))
            died, ended = attempt(folder, stage, random.random() * times[stage])
            if died is None and not ended:
                deaths.faults.append("the next run failed")
            if died is not None:
                deaths.kills[died] += 1
            if (wrong := check(folder, wanted, ended=ended)) is not None:
                deaths.faults.append(f"after {died or 'the end'}: {wrong}")
            deaths.finished += ended
            number += ended or died is None
    return deaths


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(asdict(kill_jobs(int(sys.argv[1]), int(sys.argv[2])))))
