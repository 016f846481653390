"""Jobs that die, disks that are full, folders that may not be written: nothing is lost."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from kills import batches, target

import bozzetto as bz
from bozzetto.report import Section, write_report
from bozzetto.train.checkpoint import read_checkpoint, write_checkpoint
from bozzetto.trajectory import Shape, fresh, load_predictor, save_predictor


def test_a_killed_job_goes_on_and_ends_as_if_nobody_had_killed_it() -> None:
    """Some deaths; benchmarks/run.py trust-kills dies far more often."""
    command = [sys.executable, str(Path(__file__).with_name("kills.py")), "6", "3"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    deaths = json.loads(run.stdout)
    assert deaths["faults"] == []
    assert sum(deaths["kills"].values()) == 6


# What writes: (first content, second content, what reads it back).

Write = Callable[[Path, int], object]


def _network(path: Path, number: int) -> object:
    small, plan = bz.sketch(target(), 0.5, seed=number)
    return bz.save(path, small, plan, force=True)


def _report(path: Path, number: int) -> object:
    return write_report(path, [Section("Plan", bz.sketch(target(), 0.5)[1])], title=f"{number}")


WRITERS: dict[str, tuple[Write, Callable[[Path], object]]] = {
    "network": (_network, lambda path: bz.load(path, target())),
    "checkpoint": (
        lambda path, n: write_checkpoint(path, {"weights": torch.full((3000,), float(n))}),
        read_checkpoint,
    ),
    "predictor": (
        lambda path, n: save_predictor(path, fresh(Shape("alone", 4, 1), seed=n)),
        load_predictor,
    ),
    "report": (_report, lambda path: path.read_text()[-8:]),
    "exported": (
        lambda path, n: bz.export(target(), path.with_suffix(".pt2"), batches()[0][0]),
        lambda path: torch.export.load(path.with_suffix(".pt2")),
    ),
}


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """A write beyond so many bytes of a file fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()
    } | {f"{f.relative_to(folder)}/": b"" for f in folder.rglob("*") if f.is_dir()}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("size", [0, 700, 3000])
def test_a_full_disk_is_an_error_and_leaves_what_was_there(
    tmp_path: Path, name: str, size: int
) -> None:
    write, read = WRITERS[name]
    write(tmp_path / "x", 1)
    before = everything(tmp_path)
    with files_end_at(size), pytest.raises(OSError, match=r"x|large|write|File"):
        write(tmp_path / "x", 2)
    assert everything(tmp_path) == before
    read(tmp_path / "x")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, where we may mount one."""
    (place := tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("name", ["network", "checkpoint", "predictor", "report"])
def test_a_disk_that_fills_up_is_an_error_and_leaves_what_was_there(
    small_disk: Path, name: str
) -> None:
    write, read = WRITERS[name]
    try:
        write(small_disk / "x", 1)
    except OSError:
        assert everything(small_disk) == {}
        return
    before = everything(small_disk)
    free = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(max(0, free.f_bavail - 1) * free.f_frsize))
    with pytest.raises(OSError, match="No space left"):
        write(small_disk / "x", 2)
    (small_disk / "filler").unlink()
    assert everything(small_disk) == before
    read(small_disk / "x")


@pytest.mark.parametrize("name", ["network", "checkpoint", "predictor", "report"])
def test_a_folder_that_may_not_be_written_is_an_error(small_disk: Path, name: str) -> None:
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True)
    with pytest.raises(OSError, match=r"Read-only|read-only"):
        WRITERS[name][0](small_disk / "x", 1)


def test_training_on_a_full_disk_is_an_error_and_begins_again_with_room(tmp_path: Path) -> None:
    def steps(count: int) -> bz.Recipe:
        return bz.Recipe(epochs=count, lr=1e-2, seed=1)

    path, data = tmp_path / "x.training", batches()
    bz.train(target(), data, steps(1), checkpoint=path)
    before = read_checkpoint(path)
    size = path.stat().st_size
    path.unlink()
    with files_end_at(size // 2), pytest.raises(OSError, match="File too large"):
        bz.train(target(), data, steps(1), checkpoint=path)
    assert list(tmp_path.iterdir()) == []
    bz.train(target(), data, steps(1), checkpoint=path)
    for part in ("model", "losses"):
        torch.testing.assert_close(read_checkpoint(path)[part], before[part], rtol=0, atol=0)
