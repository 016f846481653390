"""Load, the short version; benchmarks/run.py trust-load bears more."""

import torch
from loads import growth, in_a_row, large_plan, soak

MEGABYTES, OBJECTS = 2, 100  # of a window: half of what the smallest leak below leaves in it


def test_networks_compressed_in_a_row_leave_nothing_behind() -> None:
    found = in_a_row(3, 3, 3)
    assert found["least_objects"] < OBJECTS, found  # a network has thousands
    assert found["least_megabytes"] < MEGABYTES, found


def test_what_is_kept_is_seen() -> None:
    kept: list[object] = []

    def leak() -> None:
        kept.append(torch.ones(MEGABYTES * 500_000))  # four bytes each
        kept.extend([] for _ in range(2 * OBJECTS))

    memory, objects = growth(leak, 3)
    assert min(memory) > MEGABYTES, memory
    assert min(objects) > OBJECTS, objects


def test_memory_that_stays_after_one_window_is_no_leak() -> None:
    kept: list[torch.Tensor] = []
    memory, _ = growth(lambda: kept or kept.append(torch.ones(10_000_000)), 3)
    assert max(memory) > 30, memory
    assert min(memory) < MEGABYTES, memory


def test_a_plan_for_billions_of_values_takes_seconds_and_no_memory() -> None:
    found = large_plan(d=1024, depth=100)
    assert found["values"] > 1e9
    assert found["grown_megabytes"] < found["values"] * 4e-6 / 10, found  # a tenth of the network


def test_evaluating_over_and_over_gives_one_number_and_takes_no_more_memory() -> None:
    found = soak(50, 3, 80)
    assert found["different_values"] == 1
    assert found["least_megabytes"] < MEGABYTES, found
