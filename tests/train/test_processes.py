"""Several processes train as one does: two of gloo on this machine, data parallel and sharded."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close
from worker import BATCHES, RECIPES, accelerator, net

from bozzetto.train import CheckpointMismatch, Recipe, train
from bozzetto.train.checkpoint import read_checkpoint
from bozzetto.train.processes import Alone, Processes

WORKER = "import sys, worker; worker.main(*sys.argv[1:])"
ROUNDING = {"rtol": 1e-4, "atol": 1e-6}  # sums of float32 in another order, over 16 steps


def start(folder: Path, kind: str, recipe: str, *, stop: int = 0, checkpoint: bool = False):
    """Two processes of the worker."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": port}
    common |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    asked = [kind, recipe, str(folder), str(stop), str(folder / "run") if checkpoint else ""]
    return [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, *asked],
            cwd=Path(__file__).parent,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]


def finish(processes: list[subprocess.Popen[bytes]]) -> None:
    said = [process.communicate(timeout=120)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)


Result = tuple[list[float], dict[str, torch.Tensor]]
Run = tuple[str, str, Result]


def result(folder: Path) -> Result:
    losses = read_checkpoint(folder / "history")["losses"].tolist()
    return losses, load_file(folder / "weights.safetensors")


@pytest.fixture(scope="module", params=[("data parallel", "sgd"), ("fsdp", "mixed")], ids=str)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A kind of processes, a recipe, and what two of them gave."""
    kind, recipe = request.param
    folder = tmp_path_factory.mktemp("two")
    finish(start(folder, kind, recipe))
    return kind, recipe, result(folder)


def test_two_processes_give_what_one_gives(run: Run) -> None:
    _, recipe, (losses, weights) = run
    alone = net()
    history = train(alone, BATCHES, RECIPES[recipe])
    assert_close(losses, [*history.losses], **ROUNDING)
    assert_close(weights, alone.state_dict(), **ROUNDING)


def test_two_killed_processes_are_resumed_to_the_same_losses(run: Run, tmp_path: Path) -> None:
    kind, recipe, whole = run
    killed = start(tmp_path, kind, recipe, stop=5, checkpoint=True)
    killed[0].communicate(timeout=120)
    killed[1].kill()  # it waits for the first
    killed[1].communicate()
    assert killed[0].returncode == 9
    assert len(read_checkpoint(tmp_path / "run")["losses"]) == 4
    finish(start(tmp_path, kind, recipe, checkpoint=True))
    for got, wanted in zip(result(tmp_path), whole, strict=True):
        assert_close(got, wanted, rtol=0, atol=0)
    with pytest.raises(CheckpointMismatch, match="processes: count is 2 in the file and 1 here"):
        train(net(), BATCHES, RECIPES[recipe], checkpoint=tmp_path / "run")


def test_reduced_precision_is_used_by_two_processes_too(tmp_path: Path) -> None:
    together, alone, exact = start(tmp_path, "data parallel", "bfloat16"), net(), net()
    history = train(alone, BATCHES, RECIPES["bfloat16"])
    whole = train(exact, BATCHES, Recipe(epochs=2, lr=0.01))
    finish(together)
    losses = torch.tensor(result(tmp_path)[0])
    gap = (torch.tensor(history.losses) - torch.tensor(whole.losses)).abs().max()
    assert (losses - torch.tensor(history.losses)).abs().max() < gap


@pytest.fixture
def single():
    """An accelerator of this process alone."""
    yield accelerator("data parallel")
    AcceleratorState._reset_state(reset_partial_state=True)


def test_an_accelerator_of_one_process_changes_nothing(single: Accelerator) -> None:
    one, other = net(), net()
    history = train(one, BATCHES, RECIPES["mixed"], accelerator=single)
    assert history == train(other, BATCHES, RECIPES["mixed"])
    assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_samples_are_shared_out_once_and_a_process_without_any_counts_for_nothing() -> None:
    x, y, scale = torch.arange(5), torch.arange(5) * 10, torch.ones(3)
    for size, count in ((5, 2), (5, 3), (1, 2), (2, 3)):
        batch = {"x": x[:size], "labels": y[:size], "scale": scale, "name": "kept"}
        seen = []
        for rank in range(count):
            place = Processes(fake(num_processes=count, process_index=rank))
            own, counted = place.share(batch, size)
            assert len(own["x"]) == max(counted, 1)
            assert own["name"] == "kept"
            assert len(own["scale"]) == 3
            seen += own["x"][:counted].tolist()
        assert seen == list(range(size))


def fake(**settings: object) -> SimpleNamespace:
    usual = {"distributed_type": "MULTI_CPU", "state": None, "scaler": None}
    usual |= {"gradient_accumulation_steps": 1, "num_processes": 1, "process_index": 0}
    return SimpleNamespace(**(usual | settings))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"distributed_type": "DEEPSPEED"}, "data parallel or FSDP processes; got DEEPSPEED"),
        ({"scaler": object()}, "float16 needs scaled losses: take bfloat16"),
        ({"gradient_accumulation_steps": 4}, "the recipe's; the accelerator has 4 steps"),
        (
            {
                "distributed_type": "FSDP",
                "state": SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=1)),
            },
            "FSDP needs fsdp_version=2; got 1",
        ),
    ],
)
def test_what_cannot_be_trained_with_is_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Processes(fake(**settings))


def test_one_alone_needs_no_accelerator() -> None:
    alone, batch = Alone(), (torch.ones(2), torch.ones(2))
    assert alone.share(batch, 2) == (batch, 2)
    assert (alone.sum(3.0), alone.lists([]), alone.count) == (3.0, [[]], 1)
    assert alone.whole(batch) is batch
    assert alone.waiting(nn.Identity()).__enter__() is None
