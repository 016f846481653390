import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from bozzetto.analysis.crash import (
    Crash,
    StuckAt,
    compare_crashes,
    crash,
    crash_bound,
    crash_by_layer,
    with_crashes,
)


def seeded(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5)
    return net


def mlp(width=6):
    return seeded(
        nn.Sequential(
            nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3)
        )
    )


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.first(x))))


X = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def test_models_are_compared_with_their_bounds_or_the_reason_for_none():
    models = {"dense": mlp(12), "small": mlp(4), "normed": seeded(Normed())}
    found = compare_crashes(models, [X[:5], X[5:]], [0.01, 0.1], patterns=300, bounded=8)
    rows = found.rows()
    assert [row["name"] for row in rows] == ["dense"] * 2 + ["small"] * 2 + ["normed"] * 2
    alone = crash(models["small"], [X], [0.01, 0.1], patterns=300)
    torch.testing.assert_close(found.reports["small"].error, alone.error)
    for row in rows[:4]:
        assert row["error_low"] <= row["bound"]
    expected = crash_bound(models["small"], 0.1, x=X).expected.mean().item()
    assert rows[3]["bound"] == pytest.approx(expected)
    assert rows[4]["bound"].startswith("no sound bound for LayerNorm")
    ax = Figure().subplots()
    found.figure(ax)
    assert len(ax.lines) == 5


def test_layers_fail_one_at_a_time():
    net = mlp()
    found = crash_by_layer(net, [X], [0.1], patterns=200, bounded=4)
    assert list(found.reports) == ["1", "3"]
    alone = crash(net, [X], 0.1, layers=["3"], patterns=200)
    torch.testing.assert_close(found.reports["3"].error, alone.error)
    bound = crash_bound(net, {"3": 0.1}, x=X[:4]).expected.mean().item()
    assert found.bounds["3"] == pytest.approx([bound])


def test_bounds_of_other_faults_are_refused():
    with pytest.raises(ValueError, match="output 0"):
        compare_crashes({"net": mlp()}, [X], [0.1], fault=StuckAt(1.0), bounded=2)
    with pytest.raises(ValueError, match="fault=None"):
        crash_by_layer(mlp(), [X], [0.1], fault=Crash(), bounded=2)


def test_a_network_with_crashes_is_the_network_when_it_does_not_train():
    net = mlp()
    twin = with_crashes(net, 0.3)
    torch.testing.assert_close(twin.eval()(X), net(X))
    assert set(twin.state_dict()) == set(net.state_dict())
    net.load_state_dict(twin.state_dict())
    assert with_crashes(net.eval(), 0.3).training is False


def test_neurons_crash_at_their_rate_and_unscaled_while_training():
    net = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Identity())
    twin = with_crashes(net, 0.25).train()
    with torch.random.fork_rng():
        y = twin(torch.full((4000,), 3.0))
    lost = (y == 0).double().mean().item()
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 3.0))
    assert abs(lost - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_a_crash_rate_outside_zero_to_one_is_refused(p):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        with_crashes(mlp(), p)
    with pytest.raises(ValueError, match="no layer"):
        with_crashes(nn.Linear(2, 2), 0.1)


def test_a_network_without_layers_to_break_is_refused():
    with pytest.raises(ValueError, match="no layer can fail"):
        crash_by_layer(nn.Linear(3, 2), [torch.ones(2, 3)], [0.1])


class Functional(nn.Module):
    """Its dropout is a function, whose mode a trace would freeze."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return nn.functional.dropout(torch.relu(self.layer(x)), 0.5, self.training)


def test_a_network_whose_graph_depends_on_its_mode_is_refused():
    with pytest.raises(TypeError, match=r"nn\.Dropout"):
        with_crashes(Functional(), 0.1)
    with pytest.raises(TypeError, match=r"nn\.Dropout"):
        with_crashes(
            with_crashes(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Flatten()), 0.1), 0.1
        )


def test_modes_and_modules_of_the_network_are_kept():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU())
    net.add_module("crashes", nn.Linear(3, 2))
    net[1].eval()  # frozen, in a network that trains
    hard = with_crashes(net, 0.1)
    assert hard.training
    assert not hard.get_submodule("1").training
    assert hard.state_dict().keys() == net.state_dict().keys()
    x = torch.ones(2, 3)
    torch.testing.assert_close(hard.eval()(x), net.eval()(x))
