"""Rows of studies survive a kill while one is written."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def lines() -> ModuleType:
    file = Path(__file__).parents[1] / "benchmarks" / "lines.py"
    spec = importlib.util.spec_from_file_location("lines", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_study_goes_on_after_a_kill_at_any_place_of_a_row(
    lines: ModuleType, tmp_path: Path
) -> None:
    row = {"cell": {"seed": 0}, "accuracy": 1.0}
    whole = json.dumps(row) + "\n"
    for cut in range(len(whole) + 1):
        path = tmp_path / f"{cut}.jsonl"
        path.write_text(whole + whole[:cut])
        lines.add(path, {"cell": {"seed": 1}})
        complete = [row] * (1 + (cut >= len(whole) - 1))
        assert lines.read(path) == [*complete, {"cell": {"seed": 1}}]


def test_no_file_holds_no_rows(lines: ModuleType, tmp_path: Path) -> None:
    assert lines.read(tmp_path / "none.jsonl") == []
