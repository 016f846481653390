from pathlib import Path

import pytest

from bozzetto.trajectory import load

DRIVING = Path(__file__).parents[2] / ".." / "shared" / "data" / "driving"


@pytest.fixture(scope="session")
def driving():
    """The folder of real recordings."""
    if not DRIVING.exists():
        pytest.skip("the driving data is not here")
    return DRIVING


@pytest.fixture(scope="session")
def fixture_recordings(driving):
    """Real and simulated traffic, a minute of each of five places."""
    return list(load(driving / "fixture.npz"))
