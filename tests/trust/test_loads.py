"""Load, the short version; benchmarks/run.py trust-load bears more."""

from loads import in_a_row, large_plan, soak


def test_networks_compressed_in_a_row_leave_nothing_behind() -> None:
    found = in_a_row(12, 6)
    assert found["grown_objects"] < 200, found  # caches may still fill up; a network has thousands
    assert found["grown_megabytes"] < 20, found


def test_a_plan_for_billions_of_values_takes_seconds_and_no_memory() -> None:
    found = large_plan(d=1024, depth=100)
    assert found["values"] > 1e9
    assert found["grown_megabytes"] < 200, found


def test_evaluating_over_and_over_gives_one_number_and_takes_no_more_memory() -> None:
    found = soak(300, 50)
    assert found["different_values"] == 1
    assert found["grown_megabytes"] < 20, found
