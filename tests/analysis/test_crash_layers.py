import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bozzetto.analysis.crash import Activation, NoSoundBound, activation, crash_bound, rule
from bozzetto.analysis.crash.activations import MODULES
from bozzetto.analysis.crash.network import read_network, trace
from bozzetto.analysis.crash.rules import Affine, Maximum
from bozzetto.nn import SketchConv2d, SketchLinear


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(autouse=True)
def same_weights():
    """Torch's own initial weights, the same in every run."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        yield


@pytest.mark.parametrize("kind", sorted(set(MODULES.values()), key=lambda kind: kind.__name__))
def test_the_constants_of_an_activation_hold_on_a_fine_grid(kind):
    found = activation(kind())
    z = torch.linspace(-12, 12, 240001, dtype=torch.float64)
    value = found.function(z)
    slope = found.slope(z)
    chord = value.diff() / z.diff()
    assert chord.abs().max() <= found.lipschitz + 1e-9
    assert found.lipschitz <= chord.abs().max() * 1.01
    assert value.abs().max() <= found.supremum
    assert (value.diff().min() >= -1e-12) == found.monotone
    if found.curvature is not None:
        assert (slope.diff() / z.diff()).abs().max() <= found.curvature + 1e-6
    if found.kinks is not None:
        bends = slope.diff().abs() > 1e-9
        at = z[1:][bends]
        assert all((at - kink).abs().min() < 1e-3 for kink in found.kinks)
        assert slope.diff().abs().max() == pytest.approx(found.bend)
        assert bends.sum() <= 2 * len(found.kinks)
    if found.convex:
        assert slope.diff().min() >= -1e-9


LINEAR = {
    "linear": (lambda: nn.Linear(5, 3), (5,)),
    "tokens": (lambda: nn.Linear(5, 3), (2, 5)),
    "conv": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 5, 4)),
    "grouped": (lambda: nn.Conv2d(4, 2, 2, groups=2, dilation=2, bias=False), (4, 4, 4)),
    "same": (lambda: nn.Conv1d(2, 3, 3, padding="same"), (2, 6)),
    "circular": (lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), (2, 3)),
    "reflect": (lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 2, stride=2, padding=1), (2, 3, 3)),
    "wide transposed": (
        lambda: nn.ConvTranspose1d(4, 2, 3, stride=1, groups=2, dilation=2),
        (4, 3),
    ),
    "volume": (lambda: nn.Conv3d(1, 2, 2), (1, 3, 3, 2)),
    "norm": (lambda: nn.BatchNorm1d(3), (3, 2)),
    "average": (lambda: nn.AvgPool2d(2, 1, 1), (2, 3, 3)),
    "global": (lambda: nn.AdaptiveAvgPool2d(1), (2, 3, 3)),
    "flatten": (lambda: nn.Flatten(), (2, 3)),
    "shuffle": (lambda: nn.PixelShuffle(2), (4, 2, 2)),
    "zero pad": (lambda: nn.ZeroPad2d(1), (1, 2, 2)),
    "dropout": (lambda: nn.Dropout(), (4,)),
    "sketch down": (lambda: SketchLinear(6, 5, 2, sides="in").terms[0][0], (6,)),
    "sketch up": (lambda: SketchConv2d(4, 6, 3, 2, sides="out").terms[0][1], (2, 3, 3)),
}


def dense(found, shape):
    """The matrix by its action on a basis, (out, in)."""
    n = torch.Size(shape).numel()
    basis = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    return found.linear(basis).flatten(1).T


@pytest.mark.parametrize("name", LINEAR)
def test_powers_and_norm_of_a_linear_layer_agree_with_its_dense_matrix(name):
    make, shape = LINEAR[name]
    module = make().double().eval()
    if isinstance(module, nn.BatchNorm1d):
        module.running_var.copy_(random(3).abs() + 0.5)
        module.weight.data.copy_(random(3, seed=1))
    with torch.no_grad():
        found = rule(module)
        assert isinstance(found, Affine)
        x = random(2, *shape).abs()
        a = dense(found, shape)
        y = found.linear(x).flatten(1)
        torch.testing.assert_close(y, x.flatten(1) @ a.T)
        first = found.power(x, 1).flatten(1)
        assert (first >= x.flatten(1) @ a.abs().T - 1e-12).all()
        assert found.squares == (name not in ("circular", "reflect", "average", "global"))
        if found.squares:
            torch.testing.assert_close(found.power(x, 2).flatten(1), x.flatten(1) @ (a**2).T)
            torch.testing.assert_close(first, x.flatten(1) @ a.abs().T)
        if found.single:
            assert ((a != 0).sum(0) <= 1).all()
            assert ((a != 0).sum(1) <= 1).all()
        if found.largest is not None:
            assert found.largest >= a.abs().max() or not found.squares
        norm, true = found.norm(x[:1]), torch.linalg.matrix_norm(a, 2).item()
        assert true <= norm * (1 + 1e-12)
        assert norm <= 3 * true


@pytest.mark.parametrize(
    "module",
    [
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 1, 1),
        nn.MaxPool2d((2, 1), dilation=(2, 1)),
        nn.MaxPool2d(2, ceil_mode=True),
    ],
)
def test_windows_hold_what_max_pooling_sees(module):
    x = random(2, 3, 5, 5)
    found = rule(module)
    assert isinstance(found, Maximum)
    torch.testing.assert_close(found.windows(x).amax(1), module(x))


class Calls(nn.Module):
    """Functional calls of every kind that has a rule."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 1)
        self.table = nn.Parameter(random(4, 8).float())
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        h = torch.relu(self.first(x))
        h = torch.tanh(self.second(h)) * 0.5 + h / 2 - 1.0
        h = F.pad(F.max_pool2d(h, 2), (0, 0, 0, 0))
        left = F.leaky_relu(h.view(h.size(0), -1), 0.1)
        right = F.linear(torch.flatten(h, 1), self.table)
        return self.head(torch.cat([left, F.gelu(right)], dim=1))


def test_functional_calls_are_read_like_modules():
    net, x = Calls().double().eval(), random(3, 1, 4, 4)
    found = read_network(net, x)
    torch.testing.assert_close(found.value, net(x))
    assert found.site_names() == ["relu", "tanh", "leaky_relu", "gelu"]
    bound = crash_bound(net, 0.01, x=x)
    assert {"papers", "absolute", "moment", "zonotope"} <= set(bound.bounds)
    assert (bound.expected > 0).all()


class Settings(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 8)

    def forward(self, x):
        a, b = self.layer(x), self.layer(-x)
        a = F.gelu(F.hardtanh(a, -0.1, 0.2), approximate="tanh") + F.softplus(a, 3.0)
        b = F.leaky_relu(b, 0.3) - F.elu(b, alpha=0.5) + F.hardtanh(b, max_val=0.1, min_val=-0.2)
        return torch.softmax(a + F.softshrink(b, 0.1), dim=1)


class Mixed(Settings):
    def forward(self, x):
        h = torch.relu(self.layer(x))
        return h - h.mean()


def test_settings_of_functional_calls_are_kept():
    net, x = Settings().double(), random(3, 3)
    network = read_network(net, x)
    for step in network.steps:
        if isinstance(step.rule, Activation):
            source = network.steps[step.inputs[0]].value
            torch.testing.assert_close(step.rule.function(source), step.value)


def test_a_call_that_mixes_the_rows_of_a_batch_is_refused():
    with pytest.raises(NoSoundBound, match="mean"):
        crash_bound(Mixed(), 0.1, x=random(2, 3))


def test_a_reused_activation_is_two_sites():
    shared = nn.ReLU()
    net = nn.Sequential(nn.Linear(2, 2), shared, nn.Linear(2, 2), shared, nn.Linear(2, 1))
    bound = crash_bound(net, 0.1, x=random(1, 2))
    assert list(bound.rates) == ["1", "1:2"]


def test_activations_in_place_do_not_change_the_bound():
    def net(inplace):
        made = nn.Sequential(
            nn.Linear(3, 4), nn.ReLU(inplace), nn.Linear(4, 4), nn.SiLU(inplace), nn.Linear(4, 2)
        )
        made.load_state_dict(weights)
        return made

    weights = nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 2)
    ).state_dict()
    x = random(2, 3)
    plain, inplace = (crash_bound(net(flag), 0.1, x=x).expected for flag in (False, True))
    torch.testing.assert_close(plain, inplace)


class AliasedInPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.act = nn.Linear(3, 3), nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.layer(x)
        return self.act(h) + h


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return torch.relu(self.layer(x)) if x.sum() > 0 else self.layer(x)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        y, _ = self.layer(x)
        return self.head(torch.relu(y))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.relu(self.layer(x, x, x)[0]))


@pytest.mark.parametrize(
    ("make", "x", "words"),
    [
        (Recurrent, random(2, 5, 3), "LSTM"),
        (Attention, random(2, 5, 4), "MultiheadAttention"),
        (
            lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.LayerNorm(4)),
            random(2, 3),
            "LayerNorm",
        ),
        (
            lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.GroupNorm(2, 4)),
            random(2, 3),
            "GroupNorm",
        ),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.Threshold(0.1, 5.0)), random(2, 3), "Threshold"),
        (
            lambda: nn.Sequential(nn.Linear(3, 4), nn.Hardshrink(), nn.ReLU()),
            random(2, 3),
            "Hardshrink",
        ),
        (
            lambda: nn.Sequential(
                nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4, track_running_stats=False)
            ),
            random(2, 3),
            "BatchNorm1d",
        ),
    ],
)
def test_layers_without_a_sound_bound_are_named(make, x, words):
    with pytest.raises(NoSoundBound, match=f"no sound bound for {words}"):
        crash_bound(make(), 0.1, x=x)


class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        h = torch.relu(self.layer(x))
        return h * torch.sigmoid(h)


class Quotient(Product):
    def forward(self, x):
        return 1.0 / (1.0 + torch.relu(self.layer(x)))


class Sine(Product):
    def forward(self, x):
        return torch.relu(self.layer(x)).exp()


class Halves(Product):
    def forward(self, x):
        low, high = torch.relu(self.layer(x)).split([1, 2], 1)
        return low + high


@pytest.mark.parametrize("kind", [Product, Quotient, Sine, Halves])
def test_calls_without_a_sound_bound_are_refused(kind):
    with pytest.raises(NoSoundBound, match="no sound bound for"):
        crash_bound(kind(), 0.1, x=random(2, 3))


def test_data_dependent_control_flow_is_refused():
    with pytest.raises(TypeError, match="control flow"):
        crash_bound(Branching(), 0.1, x=random(2, 3))


class Listed(nn.Module):
    """Its layers are in a list that torch does not know of."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(3, 3), nn.ReLU()]

    def forward(self, x):
        return self.layers[1](self.layers[0](x))


def test_modules_that_are_not_registered_are_told():
    with pytest.raises(TypeError, match="not installed as a submodule"):
        crash_bound(Listed(), 0.1, x=random(2, 3))


def test_an_activation_changed_in_place_while_shared_is_refused():
    with pytest.raises(TypeError, match="in place"):
        crash_bound(AliasedInPlace(), {"act": 0.1}, x=random(2, 3))


def test_a_registered_activation_is_bounded():
    class Cube(nn.Module):
        def forward(self, x):
            return x.clamp(-1, 1) ** 3

    net = nn.Sequential(nn.Linear(3, 3), Cube(), nn.Linear(3, 2))
    with pytest.raises(NoSoundBound):
        crash_bound(net, 0.1, x=random(2, 3))
    activation.register(Cube, lambda cube: Activation(cube, 3.0, 1.0))
    assert list(crash_bound(net, 0.1, x=random(2, 3)).rates) == ["1"]


def test_sketched_layers_are_bounded_like_the_dense_layers_they_are():
    first, last = SketchLinear(6, 8, 2, bias=True), SketchLinear(8, 6, 2)
    net = nn.Sequential(first, nn.ReLU(), last).double()
    twin = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)).double()
    with torch.no_grad():
        for layer, sketched in ((twin[0], first), (twin[2], last)):
            layer.weight.copy_(sketched.weight().reshape(layer.weight.shape))
            layer.bias.copy_(sketched.bias)
    x = random(2, 6)
    torch.testing.assert_close(net(x), twin(x))
    ours, dense = crash_bound(net, 0.1, x=x, patterns=1), crash_bound(twin, 0.1, x=x, patterns=1)
    torch.testing.assert_close(ours.bounds["zonotope"], dense.bounds["zonotope"])
    assert (ours.bounds["absolute"] >= dense.bounds["absolute"] - 1e-12).all()
    assert list(itertools.chain(ours.rates)) == ["1"]


def test_the_root_may_be_a_single_layer():
    with pytest.raises(ValueError, match="no layer to crash"):
        crash_bound(nn.Linear(3, 2), 0.1, x=random(2, 3))
    assert (crash_bound(nn.Linear(3, 2), {"0": 0.1}, x=random(2, 3)).expected > 0).all()


@pytest.mark.parametrize("sides", ["in", "out", "both"])
def test_a_traced_sketched_convolution_adds_its_bias_to_channels(sides) -> None:
    layer = SketchConv2d(8, 8, 3, 2, sides=sides, padding=1)
    x = torch.randn(2, 8, 6, 8)  # as wide as there are channels
    with torch.no_grad():
        torch.testing.assert_close(trace(nn.Sequential(layer))(x), layer(x))
