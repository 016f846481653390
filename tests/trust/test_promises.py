"""Promises kept on networks drawn at random; benchmarks/run.py trust-properties draws more."""

import copy
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest
import torch
from drawn_networks import drawn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from promises import Case, case, keep_promises, make
from torch import Tensor, nn
from torch.testing import assert_close

import bozzetto as bz
from bozzetto.knapsack import Unreachable
from bozzetto.linalg import seeded


@given(st.integers(0, 2**20))
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_promises_are_kept(seed: int) -> None:
    keep_promises(seed)


def test_drawn_cases_are_of_every_kind() -> None:
    """Else the suite would promise little."""
    parts = {part for seed in range(300) for part in drawn(seed).parts}
    assert parts == {
        "attention", "bfloat16", "buffers", "channels last", "convolutions", "float16", "float64",
        "frozen", "gradients", "groups", "hooks", "lazy", "mixed modes", "parametrization",
        "shared module", "tied weights", "transposed", "weight norm",
    }  # fmt: skip


# Broken on purpose: each promise is checked, and not only said to be.


@pytest.mark.parametrize("harm", ["budget", "weights", "generator", "hooks", "mode", "gradient"])
def test_a_broken_promise_is_seen(harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = bz.compress

    def harmful(model: nn.Module, budget: bz.Budget, batches: list[Tensor], **options: object):
        asked = bz.Budget(params=1.0) if harm == "budget" else budget
        made = honest(model, asked, batches, **options)  # pyright: ignore[reportArgumentType]
        first = next(model.parameters())
        match harm:
            case "weights":
                first.data[0] += 1
            case "generator":
                torch.randn(1)
            case "hooks":
                model.register_forward_hook(lambda *_: None)
            case "mode":
                model.train()
            case "gradient":
                first.grad = torch.zeros_like(first)
        return made

    seed = next(s for s in range(99) if case(s).way == "lowrank" and keep_promises(s)[0] == "kept")
    monkeypatch.setattr(bz, "compress", harmful)
    with pytest.raises(AssertionError):
        keep_promises(seed)


def test_a_refusal_of_what_can_be_met_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(model: nn.Module, budget: bz.Budget, *_: object, **__: object) -> None:
        raise Unreachable("no plan keeps it")

    seeds = (s for s in range(99) if case(s).way in ("lowrank", "signs", "sketch"))
    kept = list(islice((s for s in seeds if keep_promises(s)[0] == "kept"), 3))
    for name in ("compress", "sketch"):
        monkeypatch.setattr(bz, name, refusing)
    for seed in kept:
        with pytest.raises(AssertionError, match="can be reached"):
            keep_promises(seed)


# Independence of what must not matter.


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(2)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(256, 20)
        ).eval()


def images() -> list[Tensor]:
    return [(torch.arange(8 * 192) * (0.3 + 0.01 * i)).sin().view(8, 3, 8, 8) for i in range(4)]


def answer(batches: list[Tensor]) -> Tensor:
    small, _ = bz.compress(network(), 0.4, batches)
    with torch.no_grad():
        return small(images()[0])


TOLERANCE = 2e-4  # relative, of float32 weights fitted in float64 by sums in another order


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


def test_the_order_of_batches_does_not_matter() -> None:
    assert relative(answer(images()[::-1]), answer(images())) < TOLERANCE


def test_the_number_of_threads_does_not_matter() -> None:
    want, threads = answer(images()), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        got = answer(images())
    finally:
        torch.set_num_threads(threads)
    assert relative(got, want) < TOLERANCE


def test_another_process_makes_the_same_network(tmp_path: Path) -> None:
    """Bit for bit, with another seed of Python's hashes."""
    wanted = (s for s in range(40) if case(s).way in ("hybrid", "auto", "sketch"))
    seeds = list(islice((s for s in wanted if keep_promises(s)[0] == "kept"), 2))
    assert len(seeds) == 2
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from promises import case, make\n"
        "from safetensors.torch import save_file\n"
        f"for seed in {seeds}:\n"
        "    small, plan = make(case(seed))\n"
        "    state = {n: v.clone() for n, v in small.state_dict().items()}\n"
        "    save_file(state, f'{sys.argv[1]}/{seed}', metadata={'plan': plan.to_json()})\n"
    )
    for hashes in ("1", "2"):
        (tmp_path / hashes).mkdir()
        env = {"PYTHONHASHSEED": hashes, "OMP_NUM_THREADS": "1", "PATH": ""}
        command = [sys.executable, "-c", code, str(tmp_path / hashes)]
        subprocess.run(command, check=True, cwd=Path(__file__).parent, env=env)
    for seed in seeds:
        assert_same_files(tmp_path / "1" / str(seed), tmp_path / "2" / str(seed))


def assert_same_files(one: Path, other: Path) -> None:
    from safetensors import safe_open

    with safe_open(one, "pt") as a, safe_open(other, "pt") as b:
        assert a.metadata() == b.metadata()
        assert list(a.keys()) == list(b.keys())
        for name in a.keys():  # noqa: SIM118
            assert_close(a.get_tensor(name), b.get_tensor(name), rtol=0, atol=0, equal_nan=True)


def keeps_easily(one: Case) -> bool:
    """Whether the case is quick, and no budget refuses it."""
    return one.way in ("lowrank", "sketched") and one.budget.params in (0.7, 0.9)


def test_seeds_hold_in_threads() -> None:
    def draw(seed: int) -> Tensor:
        with seeded(seed, torch.device("cpu")):
            time.sleep(0.02)
            return torch.rand(3)

    before = torch.get_rng_state()
    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(draw, range(6)))
    assert_close(torch.get_rng_state(), before, rtol=0, atol=0)
    assert_close(got, [draw(seed) for seed in range(6)], rtol=0, atol=0)


def test_compressions_in_threads_are_those_done_one_after_the_other() -> None:
    seeds = [s for s in range(60) if keeps_easily(case(s))][:6]
    cases = {seed: case(seed) for seed in seeds}

    def made(seed: int) -> dict[str, Tensor] | str:
        try:
            return make(cases[seed])[0].state_dict()
        except ValueError as error:
            return str(error)

    before = torch.get_rng_state()
    want = {seed: made(seed) for seed in seeds}
    got: dict[int, dict[str, Tensor] | str] = {}
    threads = [
        threading.Thread(target=lambda s=seed: got.__setitem__(s, made(s))) for seed in seeds
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got.keys() == want.keys()
    assert {s for s in seeds if isinstance(got[s], str)} == set()
    for seed in seeds:
        assert_close(got[seed], want[seed], rtol=0, atol=0, equal_nan=True)
    assert_close(torch.get_rng_state(), before, rtol=0, atol=0)


def test_a_copy_of_a_drawn_network_is_the_network() -> None:
    """What the suite relies on."""
    one = drawn(5)
    with torch.no_grad():
        assert_close(copy.deepcopy(one.model)(one.batches[0]), one.model(one.batches[0]))
