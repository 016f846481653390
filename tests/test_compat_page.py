"""The page of compatibility shows the results, and every network of the benchmark is there."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def page(monkeypatch):
    """The module that writes it."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import compat_page

    yield compat_page
    sys.modules.pop("compat_page")


@pytest.fixture
def result(page):
    return json.loads(page.RESULT.read_text())


def test_the_page_is_the_one_that_the_results_make(page, result):
    text = page.PAGE.read_text()
    assert text == page.written(text, result)


def test_every_network_was_measured_or_is_named(page, result):
    from compat_networks import NETWORKS

    measured = [f"{row['library']}: {row['network']}" for row in result["rows"]]
    assert sorted([*measured, *result["missing"]]) == sorted(NETWORKS)


def test_what_failed_is_told(page):
    row = {"library": "x", "network": "Y", "params": 1234, "forward": False, "reason": "it broke"}
    text = page.table({"rows": [row], "versions": {"x": "1"}, "missing": ["x: Z"]})
    assert "| x | Y | 1,234 | – | – | – | **no** | – | – | – | – |" in text
    assert "- x Y: it broke" in text
    assert "Not measured yet: x: Z." in text
