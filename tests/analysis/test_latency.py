import statistics
import time
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from bozzetto import timing
from bozzetto.analysis.latency import Latency, latency


class Sleeper(nn.Module):
    """Takes the same time whatever the machine does."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.calls = seconds, []

    def forward(self, x):
        self.calls.append((time.perf_counter(), self.training, torch.is_grad_enabled()))
        time.sleep(self.seconds)
        return x


def test_the_ratio_is_that_of_the_times():
    models = {"slow": Sleeper(0.02), "fast": Sleeper(0.005)}
    made = latency(models, torch.ones(1), repeats=5)
    assert made.ratio("slow") == 1
    assert 0.25 <= made.ratio("fast") < 0.6
    assert min(made.seconds["slow"]) >= 0.02
    assert [len(seconds) for seconds in made.seconds.values()] == [5, 5]


def test_models_take_turns_without_gradients_in_evaluation_mode():
    models = {name: Sleeper(0.003) for name in "abc"}
    latency(models, torch.ones(1), repeats=6)
    calls = sorted((when, name) for name, model in models.items() for when, *_ in model.calls)
    order = "".join(name for _, name in calls)
    assert order == "aabbcc" + "abcbcacab" * 2
    assert all(not training and not grad for m in models.values() for _, training, grad in m.calls)


def test_short_calls_are_repeated_until_they_can_be_measured(monkeypatch):
    class Ticking(nn.Module):
        """Each call takes a fifth of a millisecond by the clock on the wall."""

        now, calls = 0.0, 0

        def forward(self, x):
            self.now, self.calls = self.now + 0.0002, self.calls + 1
            return x

    model = Ticking()
    clock = SimpleNamespace(perf_counter=lambda: model.now, process_time=lambda: 0.0)
    monkeypatch.setattr(timing, "time", clock)
    made = latency({"short": model}, torch.ones(1), repeats=3)
    assert 2 + 3 * 10 <= model.calls <= 2 + 3 * 11
    assert statistics.median(made.seconds["short"]) == pytest.approx(0.0002)


def test_flags_and_threads_are_as_before():
    model, threads = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).train(), 1
    model[1].eval()
    before = torch.get_num_threads()
    made = latency({"m": model}, (torch.ones(2, 4), torch.zeros(2)), repeats=1, threads=threads)
    assert made.threads == 1
    assert torch.get_num_threads() == before
    assert [m.training for m in model.modules()] == [True, True, False]
    with pytest.raises(RuntimeError, match="shapes"):
        latency({"m": model}, torch.ones(2, 5), threads=threads)
    assert torch.get_num_threads() == before
    assert [m.training for m in model.modules()] == [True, True, False]


@pytest.mark.parametrize(
    ("models", "repeats", "threads", "message"),
    [
        ({}, 1, None, "at least one model"),
        ({"m": nn.ReLU()}, 0, None, "repeats >= 1"),
        ({"m": nn.ReLU()}, 1, 0, "threads >= 1"),
    ],
)
def test_bad_input_is_refused(models, repeats, threads, message):
    with pytest.raises(ValueError, match=message):
        latency(models, torch.ones(1), repeats=repeats, threads=threads)


def test_ratios_are_of_the_same_round():
    made = Latency({"a": (1.0, 2.0, 4.0), "b": (0.5, 1.0, 8.0)}, threads=1)
    assert made.ratios("b") == [0.5, 0.5, 2.0]
    assert made.rows()[1] == {
        "model": "b",
        "milliseconds": 1000.0,
        "ratio": 0.5,
        "lower_quartile": 0.5,
        "upper_quartile": 1.25,
    }
    ax = Figure().subplots()
    made.figure(ax)
    assert [bar.get_width() for bar in ax.patches] == [1.0, 0.5]
