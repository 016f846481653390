"""The scripts of the gallery run, without a warning, and draw what they promise."""

import runpy
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from bozzetto.methods import METHODS
from bozzetto.sketch import FAMILIES

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
READS_DATA = {"trajectory.py"}  # from beside a checkout: tests/trajectory has the parts of it
SCRIPTS = [path for path in sorted(EXAMPLES.glob("*.py")) if path.name not in READS_DATA]


@pytest.fixture
def _registries_and_figures() -> Iterator[None]:
    """What a script registers and draws is gone afterwards."""
    plt.switch_backend("Agg")
    before = [(registry, dict(registry)) for registry in (METHODS, FAMILIES)]
    yield
    plt.close("all")
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


@pytest.mark.usefixtures("_registries_and_figures")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_runs_and_draws(
    script: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    figures = [plt.figure(number) for number in plt.get_fignums()]
    assert figures
    assert all(ax.has_data() or ax.images for figure in figures for ax in figure.axes)
    assert capsys.readouterr().out.strip()
    assert list(tmp_path.iterdir()) == []
