import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bozzetto.analysis.crash import NoSoundBound, Sampling, activation, crash_bound
from bozzetto.analysis.crash.expected import ExpectedZonotope
from bozzetto.analysis.crash.moments import MomentDomain
from bozzetto.analysis.crash.network import read_network
from bozzetto.analysis.crash.sums import Sizes, curved, stop_loss
from bozzetto.analysis.crash.walk import walk

RATES = (0.0, 0.003, 0.05, 0.3, 0.8, 1.0)


def seeded(make, seed):
    """A module whose weights come from a generator; about as large as torch's own."""
    net, generator = make().double().eval(), torch.Generator().manual_seed(seed)
    for name, value in [*net.named_parameters(), *net.named_buffers()]:
        if value.is_floating_point():
            draw = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            scale = 1.5 / math.sqrt(max(1, value[0].numel())) if value.ndim > 1 else 0.3
            value.data.copy_(draw.abs() + 0.5 if name.endswith("var") else draw * scale)
    return net


def inputs(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def oracle(net, x, sites, unit="neuron"):
    """Every crash pattern by plain hooks: patterns (P, units) and |errors| (P, b, *out)."""
    modules, sizes = dict(net.named_modules()), {}

    def measure(name):
        return lambda module, args, out: sizes.__setitem__(name, out.shape[1:])

    hooks = [modules[name].register_forward_hook(measure(name)) for name in sites]
    healthy = net(x)
    [hook.remove() for hook in hooks]
    shapes = {n: s if unit == "neuron" else [s[0], *[1] * (len(s) - 1)] for n, s in sizes.items()}
    counts = [math.prod(shapes[name]) for name in sites]
    alive = torch.tensor(list(itertools.product([True, False], repeat=sum(counts))))
    parts = dict(zip(sites, alive.split(counts, 1), strict=True))
    b, rows = len(x), len(alive)

    def strike(name):
        mask = parts[name].reshape(rows, 1, *shapes[name])
        return lambda module, args, out: (out.unflatten(0, (rows, b)) * mask).flatten(0, 1)

    hooks = [modules[name].register_forward_hook(strike(name)) for name in sites]
    with torch.no_grad():
        faulty = net(x.repeat(rows, *[1] * (x.ndim - 1))).unflatten(0, (rows, b))
    [hook.remove() for hook in hooks]
    return parts, (faulty - healthy).abs().detach()


def chances(alive, p):
    rate = torch.tensor(p, dtype=torch.float64)
    return torch.where(alive, 1 - rate, rate).prod(1)


def expectation(parts, errors, p):
    alive = torch.cat(list(parts.values()), 1)
    chance = chances(alive, p)
    return torch.einsum("p,p...->...", chance, errors)


def most(parts, errors, f):
    allowed = torch.stack([(~alive).sum(1) <= f for alive in parts.values()]).all(0)
    return errors[allowed].amax(0)


def never_below(bound, exact):
    return bool((bound >= exact * (1 - 1e-9) - 1e-12).all())


def mlp(act, *widths):
    layers = []
    for n, m in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(n, m), act()]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


class Residual(nn.Module):
    """A convolution, then a residual block whose ReLU follows the sum."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 1, 2, bias=False), nn.BatchNorm2d(1)
        self.act, self.inner, self.last = nn.ReLU(), nn.Conv2d(1, 1, 3, padding=1), nn.ReLU()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.act(self.norm(self.first(x)))
        x = self.last(x - self.inner(x))
        return self.head(torch.flatten(x, 1))


class Doubled(nn.Module):
    """The same neurons by two ways."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.head = nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 2)
        self.twin = nn.Linear(6, 6, bias=False)

    def forward(self, x):
        h = self.act(self.first(x))
        return self.head(h + self.twin(h))


SMALL = {
    "relu": (lambda: mlp(nn.ReLU, 4, 4, 4, 3), (4,)),
    "tanh": (lambda: mlp(nn.Tanh, 4, 4, 4, 3), (4,)),
    "sigmoid": (lambda: mlp(nn.Sigmoid, 3, 3, 3, 3, 2), (3,)),
    "gelu": (lambda: mlp(nn.GELU, 4, 4, 4, 3), (4,)),
    "leaky": (lambda: mlp(nn.LeakyReLU, 3, 3, 3, 3, 2), (3,)),
    "hardtanh": (lambda: mlp(nn.Hardtanh, 4, 4, 4, 3), (4,)),
    "selu": (lambda: mlp(nn.SELU, 4, 4, 4, 3), (4,)),
    "residual": (Residual, (1, 3, 3)),
    "low rank": (
        lambda: nn.Sequential(
            nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2), nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 2)
        ),
        (4,),
    ),
    "max pool": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2, 4),
            nn.ReLU(),
            nn.Linear(4, 2),
        ),
        (1, 3, 3),
    ),
    "deep max pool": (
        lambda: nn.Sequential(
            nn.Conv1d(1, 1, 2),
            nn.ReLU(),
            nn.Conv1d(1, 2, 1),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Flatten(),
            nn.Linear(4, 2),
        ),
        (1, 5),
    ),
    "max pool of tanh": (
        lambda: nn.Sequential(
            nn.Linear(2, 4),
            nn.Tanh(),
            nn.Linear(4, 6),
            nn.Tanh(),
            nn.Unflatten(1, (2, 3)),
            nn.MaxPool1d(3),
            nn.Flatten(),
            nn.Linear(2, 2),
        ),
        (2,),
    ),
    "overlapping max pool": (
        lambda: nn.Sequential(
            nn.Conv1d(1, 2, 2), nn.Tanh(), nn.MaxPool1d(3, 1, 1), nn.Flatten(), nn.Linear(10, 2)
        ),
        (1, 6),
    ),
    "average pool": (
        lambda: nn.Sequential(
            nn.Conv1d(1, 2, 2, stride=2),
            nn.ReLU(),
            nn.AvgPool1d(2),
            nn.Flatten(),
            nn.Linear(4, 3),
            nn.ReLU(),
            nn.Linear(3, 2),
        ),
        (1, 8),
    ),
    "groups and dilation": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 2, 2, groups=2, dilation=2),
            nn.ReLU(),
            nn.ConvTranspose1d(2, 1, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4, 2),
        ),
        (2, 5),
    ),
    "softmax": (
        lambda: nn.Sequential(*mlp(nn.ReLU, 4, 5, 5, 3), nn.Softmax(-1)),
        (4,),
    ),
    "circular": (
        lambda: nn.Sequential(
            nn.Conv1d(1, 2, 3, padding=1, padding_mode="circular"),
            nn.ReLU(),
            nn.Conv1d(2, 1, 3, padding=1, padding_mode="circular"),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(3, 2),
        ),
        (1, 3),
    ),
}
small = pytest.mark.parametrize("name", SMALL)


def case(name, seed, b=3):
    make, shape = SMALL[name]
    net = seeded(make, seed)
    sites = [n for n, m in net.named_modules() if is_activation(m)]
    return net, inputs(seed + 1000, b, *shape), sites


def is_activation(module):
    try:
        return bool(activation(module)) and not isinstance(module, nn.Softmax)
    except NoSoundBound:
        return False


@small
def test_no_bound_is_below_the_expectation_over_all_crash_patterns(name):
    compared = 0
    for seed in range(4):
        net, x, sites = case(name, seed)
        parts, errors = oracle(net, x, sites)
        for p in RATES:
            exact = expectation(parts, errors, p)
            found = crash_bound(net, p, x=x, patterns=sum(v.shape[1] for v in parts.values()) + 1)
            assert list(found.rates) == sites
            for kind, bound in found.bounds.items():
                assert never_below(bound, exact), (kind, seed, p)
            compared += exact.numel()
    assert compared >= 4 * len(RATES) * 3 * 2


@small
@pytest.mark.parametrize("unit", ["neuron", "channel"])
def test_no_bound_is_below_the_root_mean_square(name, unit):
    net, x, sites = case(name, 9)
    parts, errors = oracle(net, x, sites, unit)
    network = read_network(net, x)
    for p in RATES[1:]:
        exact = expectation(parts, errors**2, p).sqrt()
        rates = dict.fromkeys(sites, p)
        with torch.no_grad():
            zonotope = ExpectedZonotope(unit, 1 << 26)
            moments = walk(network, MomentDomain(unit), rates)
            signed = zonotope.total(walk(network, zonotope, rates))[1]
        assert never_below(moments.square, exact), p
        assert never_below(signed, exact), p
        total = expectation(parts, errors.flatten(2).norm(dim=2) ** 2, p).sqrt()
        assert never_below(moments.norm, total), p


def test_a_loser_that_takes_over_from_a_crashed_winner_may_be_wrong_already():
    net = nn.Sequential(
        *(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2), nn.ReLU(), nn.Unflatten(1, (1, 2))),
        *(nn.MaxPool1d(2), nn.Flatten(), nn.Linear(1, 1)),
    ).double()
    with torch.no_grad():
        for value in net.parameters():
            value.fill_(1.0)
        net[0].bias.zero_()
        net[2].weight.copy_(torch.tensor([[0.0], [0.9]]))
        net[2].bias.copy_(torch.tensor([1.0, 0.0]))
    x = torch.ones(1, 1, dtype=torch.float64)
    for p in (0.1, 0.5, 0.7):
        exact = expectation(*oracle(net, x, ["1", "3"]), p)
        assert never_below(crash_bound(net, p, x=x).bounds["zonotope"], exact)


def test_stop_loss_bounds_hold_for_sums_and_for_errors_that_depend_on_them():
    alive = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8)), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for p, width in itertools.product((0.01, 0.2, 0.5), (0.0, 0.1, 1.0)):
        gains = width * torch.randn(8, generator=generator, dtype=torch.float64)
        chance = chances(alive > 0, p)
        x = (alive - (1 - p)) @ gains
        for d in (0.05, 0.5, 2.0):
            wrong = [
                torch.zeros_like(x),
                2 * d * (alive[:, 0] < 1),
                (x - d / 2).clamp(min=0),
                d / 2 * torch.randn(len(x), generator=generator, dtype=torch.float64),
            ]
            for e in wrong:

                def mean(v, chance=chance):
                    return (chance * v).sum()

                def pair(v):
                    return mean(v), mean(v**2).sqrt()

                up, down = pair(e.clamp(min=0)), pair((-e).clamp(min=0))
                s = Sizes(mean(x**2), mean(x**4), mean(x.abs()), up, down, pair(e.abs()))
                first, second = stop_loss(s, torch.tensor(d).double())
                exact = pair((x + e - d).clamp(min=0))
                assert never_below(first, exact[0]), (p, width, d)
                assert never_below(second, exact[1]), (p, width, d)
                first, second = curved(s, 1.0, 1.0)
                bend = (0.5 * (x + e) ** 2).minimum(0.5 * x**2 + 2 * e.abs())
                assert never_below(first, pair(bend)[0]), (p, width, d)
                assert never_below(second, pair(bend)[1]), (p, width, d)


@small
def test_no_bound_is_below_the_expectation_when_one_layer_crashes(name):
    for seed in range(3):
        net, x, sites = case(name, seed)
        for site in sites:
            parts, errors = oracle(net, x, [site])
            for p in (0.02, 0.3, 1.0):
                found = crash_bound(net, {site: p}, x=x, patterns=parts[site].shape[1] + 1)
                for kind, bound in found.bounds.items():
                    assert never_below(bound, expectation(parts, errors, p)), (kind, site, seed, p)
            found = crash_bound(net, failures={site: 1}, x=x)
            for kind, bound in found.bounds.items():
                assert never_below(bound, most(parts, errors, 1)), (kind, site, seed)


@small
def test_no_bound_is_below_the_worst_choice_of_crashes(name):
    for seed in range(3):
        net, x, sites = case(name, seed)
        parts, errors = oracle(net, x, sites)
        for f in (0, 1, 2, 3):
            found = crash_bound(net, failures=f, x=x)
            for kind, bound in found.bounds.items():
                assert never_below(bound, most(parts, errors, f)), (kind, seed, f)


@small
def test_no_bound_is_below_the_expectation_when_channels_crash(name):
    net, x, sites = case(name, 7)
    parts, errors = oracle(net, x, sites, "channel")
    for p in RATES:
        exact = expectation(parts, errors, p)
        found = crash_bound(net, p, x=x, unit="channel", patterns=len(parts) * 4)
        for kind, bound in found.bounds.items():
            assert never_below(bound, exact), (kind, p)
    for f in (0, 1, 2):
        if all(alive.shape[1] >= f for alive in parts.values()):
            found = crash_bound(net, failures=f, x=x, unit="channel")
            for kind, bound in found.bounds.items():
                assert never_below(bound, most(parts, errors, f)), (kind, f)


@small
def test_a_bound_over_a_box_holds_for_inputs_of_the_box(name):
    net, x, sites = case(name, 3, b=1)
    inside = x + 0.1 * (
        2 * torch.rand(20, *x.shape[1:], dtype=x.dtype, generator=torch.Generator().manual_seed(5))
        - 1
    )
    parts, errors = oracle(net, inside, sites)
    for p in (0.01, 0.3):
        found = crash_bound(net, p, x=x, radius=0.1)
        assert never_below(found.expected, expectation(parts, errors, p))
        assert (found.expected >= crash_bound(net, p, x=x).bounds["moment"]).all()


@small
def test_with_all_patterns_allowed_the_bound_is_the_expectation(name):
    net, x, sites = case(name, 5)
    parts, errors = oracle(net, x, sites)
    found = crash_bound(net, 0.07, x=x, patterns=1 << 16)
    torch.testing.assert_close(found.expected, expectation(parts, errors, 0.07))


def test_bounds_are_tight_on_enumerated_nets_with_single_crashes_only():
    """Geometric-mean looseness over 3 activations × 12 nets × 3 rates: the target is 1.5."""
    logs = []
    for name, seed, p in itertools.product(
        ("relu", "tanh", "sigmoid"), range(12), (0.01, 0.1, 0.3)
    ):
        net, x, sites = case(name, seed)
        parts, errors = oracle(net, x, sites)
        exact = expectation(parts, errors, p)
        units = sum(v.shape[1] for v in parts.values())
        found = crash_bound(net, p, x=x, patterns=units + 1)
        logs.append((found.expected / exact).log().flatten())
    assert torch.cat(logs).mean().exp() <= 1.5


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    act=st.sampled_from([nn.ReLU, nn.Tanh, nn.SiLU, nn.ELU, nn.Softplus, nn.ReLU6, nn.Hardswish]),
    widths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    p=st.floats(0, 1),
    scale=st.floats(0.1, 10),
)
def test_bounds_hold_for_any_small_net(seed, act, widths, p, scale):
    net = seeded(lambda: mlp(act, 2, *widths, 2), seed)
    x = scale * inputs(seed, 2, 2)
    sites = [n for n, m in net.named_modules() if isinstance(m, act)]
    parts, errors = oracle(net, x, sites)
    found = crash_bound(net, p, x=x, patterns=1)
    for kind, bound in found.bounds.items():
        assert never_below(bound, expectation(parts, errors, p)), kind


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["residual", "deep max pool", "overlapping max pool", "max pool of tanh"]),
    seed=st.integers(0, 10**6),
    p=st.floats(0, 1),
    scale=st.floats(0.1, 10),
)
def test_bounds_hold_for_any_small_convolutional_net(name, seed, p, scale):
    net, x, sites = case(name, seed, b=2)
    x = scale * x
    parts, errors = oracle(net, x, sites)
    found = crash_bound(net, p, x=x, patterns=1)
    for kind, bound in found.bounds.items():
        assert never_below(bound, expectation(parts, errors, p)), kind
    found = crash_bound(net, failures=1, x=x)
    for kind, bound in found.bounds.items():
        assert never_below(bound, most(parts, errors, 1)), kind


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "leaky", "residual", "deep max pool"])
def test_signed_bounds_are_exact_where_crashes_are_rare(name):
    """The part of two crashes or more is about N p of the whole, with N < 20: p = 10⁻⁷."""
    net, x, sites = case(name, 3)
    exact = expectation(*oracle(net, x, sites), 1e-7)
    bound = crash_bound(net, 1e-7, x=x).bounds["zonotope"]
    torch.testing.assert_close(bound, exact, rtol=1e-4, atol=0)


def test_rates_may_differ_between_layers():
    net, x, sites = case("relu", 11)
    parts, errors = oracle(net, x, sites)
    rates = dict(zip(sites, (0.4, 0.02), strict=True))
    chance = torch.stack([chances(parts[n], p) for n, p in rates.items()]).prod(0)
    exact = torch.einsum("p,p...->...", chance, errors)
    torch.testing.assert_close(crash_bound(net, rates, x=x).expected, exact)
    first = crash_bound(net, {sites[0]: 0.4}, x=x)
    assert list(first.rates) == sites[:1]


@pytest.mark.parametrize("sign", [1.0, -1.0, 0.5])
def test_neurons_that_reach_the_output_by_two_ways_fail_in_both(sign):
    net, x = seeded(Doubled, 4), inputs(0, 3, 2)
    net.twin.weight.data.copy_(sign * torch.eye(6))
    once = nn.Sequential(net.first, net.act, nn.Linear(6, 2)).double()
    once[2].weight.data.copy_((1 + sign) * net.head.weight)
    for p in (0.05, 0.5):
        found, plain = (crash_bound(n, p, x=x).bounds["zonotope"] for n in (net, once))
        torch.testing.assert_close(found, plain)
    found, plain = (crash_bound(n, failures=2, x=x).bounds["zonotope"] for n in (net, once))
    torch.testing.assert_close(found, plain)


def test_sampled_bounds_miss_no_more_often_than_their_confidence_allows():
    """At 80 % all nine entries must hold together in at least 80 of 100 draws (5 σ below: 60)."""
    net, x, sites = case("relu", 2)
    exact = expectation(*oracle(net, x, sites), 0.1)
    drawn = [
        crash_bound(net, 0.1, x=x, patterns=1, sampling=Sampling(400, 0.8, seed)).sampled
        for seed in range(100)
    ]
    assert sum(never_below(bound, exact) for bound in drawn) >= 60
    more = crash_bound(net, 0.1, x=x, patterns=1, sampling=Sampling(20000, 0.99, 0))
    assert (more.sampled / exact).log().mean().exp() <= 1.2
    assert (more.sampled <= more.expected).all()
    assert more.confidence == 0.99


def test_the_model_is_left_as_it_was():
    net, x, _ = case("residual", 0)
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    crash_bound(net, 0.1, x=x)
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks for module in net.modules())
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_signed_bounds_are_left_out_where_they_are_too_large():
    net, x, _ = case("relu", 0)
    assert "zonotope" not in crash_bound(net, 0.1, x=x, elements=3).bounds
    whole = crash_bound(net, 0.1, x=x).bounds["zonotope"]
    halves = crash_bound(net, 0.1, x=x, elements=60).bounds["zonotope"]
    torch.testing.assert_close(halves, whole)


def test_rows_and_figure_show_every_bound():
    from matplotlib.figure import Figure

    net, x, _ = case("relu", 0)
    found = crash_bound(net, 0.1, x=x)
    assert [row["bound"] for row in found.rows()] == [*found.bounds, "best"]
    ax = Figure().subplots()
    found.figure(ax)
    assert len(ax.patches) == len(found.bounds) + 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"p": 1.5}, r"\[0, 1\]; got 1.5"),
        ({"p": -0.1}, r"\[0, 1\]"),
        ({"p": float("nan")}, r"\[0, 1\]"),
        ({"failures": 5}, "which has 4"),
        ({"failures": -1}, "from 0"),
        ({"failures": 1.5}, "integers"),
        ({"p": {"nowhere": 0.1}}, "nowhere"),
        ({}, "p or failures"),
        ({"p": 0.1, "failures": 1}, "p or failures"),
        ({"p": 0.1, "radius": -1.0}, "radius"),
        ({"failures": 1, "radius": 1.0}, "radius"),
        ({"p": 0.1, "unit": "layer"}, "unit"),
        ({"p": 0.1, "radius": 1.0, "sampling": Sampling(10, 0.9, 0)}, "radius=0"),
        ({"failures": 1, "sampling": Sampling(10, 0.9, 0)}, "need p"),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    net, x, _ = case("relu", 0)
    with pytest.raises(ValueError, match=words):
        crash_bound(net, x=x, **arguments)
