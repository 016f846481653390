"""The command that compares tangent kernels, against the library."""

import json
from pathlib import Path

import pytest
import torch

from bozzetto.analysis.kernel import kernel
from bozzetto.cli import run
from bozzetto.io import load
from bozzetto.report import read_sections

NETWORKS = """
import torch
from torch import nn

def network():
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        for seed, value in enumerate(model.parameters()):
            value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(seed)))
    return model

def batches():
    random = torch.Generator().manual_seed(9)
    return [(torch.randn(8, 6, generator=random), torch.zeros(8)) for _ in range(3)]

def pairs():
    return [((torch.zeros(2, 6), torch.zeros(2, 6)), None)]
"""


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """A saved network of a user's module in the current folder."""
    (tmp_path / "kernels.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    made = ["kernels:network", "--data", "kernels:batches", "--keep", "0.6", "--out", "small"]
    assert run(["compress", *made]) == 0
    return Path("small")


def test_it_tells_what_the_library_does_and_adds_it_to_the_report(small, capsys):
    before = [section.title for section in read_sections(small)]
    capsys.readouterr()
    asked = ["kernels:network", "small", "--data", "kernels:batches", "--examples", "20"]
    assert run(["kernel", *asked, "--out", "small", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    import kernels  # pyright: ignore[reportMissingImports]

    target = kernels.network()
    x = torch.cat([x for x, _ in kernels.batches()])[:20]
    expected = json.loads(json.dumps(kernel(target, load(small, target), x).rows()))
    assert told["networks"] == expected
    assert told["inputs"] == 20
    assert [section.title for section in read_sections(small)] == [*before, "Tangent kernel"]
    assert read_sections(small)[-1].rows == expected


def test_what_it_cannot_compare_is_refused(small, capsys):
    capsys.readouterr()
    for data, count, message in [
        ("pairs", "8", "needs batches with one tensor of inputs; got 2 and the names []"),
        ("batches", "1", "needs at least 2 inputs"),
    ]:
        asked = ["kernels:network", "small", "--data", f"kernels:{data}", "--examples", count]
        assert run(["kernel", *asked]) == 1
        assert message in " ".join(capsys.readouterr().err.split())
