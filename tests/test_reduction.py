"""Two processes that calibrate on half of the batches each know what one knows of all."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import bozzetto as bz
from bozzetto.moments import SketchedMoment
from bozzetto.reduction import _joined, _parts, _reduced, reduce_stats

WORKER = """
import sys
import torch
from torch import distributed
sys.path.insert(0, {folder!r})
import bozzetto as bz
from bozzetto.reduction import reduce_stats
from test_reduction import BATCHES, model

rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
found = reduce_stats(bz.collect(model(), BATCHES[: 3] if rank == 0 else BATCHES[3:]))
torch.save([(path, vars(s)) for path, s in found.items()], sys.argv[3])
distributed.barrier()
distributed.destroy_process_group()
"""
DRAWS = torch.Generator().manual_seed(0)
BATCHES = [torch.randn(size, 6, generator=DRAWS) for size in (5, 4, 7, 3, 2)]


class Branches(nn.Module):
    """A layer of which only large batches make use."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rare, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return self.last(self.rare(h) if len(x) > 3 else h)


def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Branches()


def test_two_processes_know_together_what_one_knows_of_all_batches(tmp_path: Path) -> None:
    code = WORKER.format(folder=str(Path(__file__).parent))
    files = [tmp_path / f"found{rank}.pt" for rank in range(2)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(tmp_path / "store"), str(file)]
        )
        for rank, file in enumerate(files)
    ]
    assert [process.wait(120) for process in running] == [0, 0]
    whole = bz.collect(model(), BATCHES)
    for file in files:
        found = dict(torch.load(file, weights_only=False))
        assert found.keys() == whole.keys() == {"first", "rare", "last"}
        for path, stats in whole.items():
            got, wanted = found[path], vars(stats)
            assert got.pop("positions") == wanted["positions"]
            assert got.pop("shapes") == wanted["shapes"]
            for name, value in got.items():
                assert_close(value, wanted[name], msg=f"{path}.{name}")


def test_sketched_moments_are_taken_apart_and_put_together_again() -> None:
    held = SketchedMoment(torch.rand(1, 8).double(), torch.rand(1, 8, 3).double())
    stats = bz.Stats(held, torch.rand(1, 8).double(), None, 5, ((2, 8),))
    parts = _parts(stats)
    assert sorted(parts) == ["mean", "moment.diagonal", "moment.product"]
    again = _joined(parts, 5, ((2, 8),))
    assert again.moment.product is held.product  # pyright: ignore
    assert (again.gradient, again.positions, again.shapes) == (None, 5, ((2, 8),))


def test_without_a_process_group_there_is_nothing_to_reduce() -> None:
    with pytest.raises(ValueError, match="in a process group; none is initialised"):
        reduce_stats({})


def test_processes_with_different_networks_are_told() -> None:
    said = [(1, (), {"moment": (1, 2, 2)}), (1, (), {"moment": (1, 3, 3)})]
    with pytest.raises(ValueError, match=r"the moment of 'fc' is \(1, 3, 3\) in one and"):
        _reduced("fc", None, said)
