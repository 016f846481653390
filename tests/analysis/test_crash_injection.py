import itertools
import math

import pytest
import torch
from torch import nn

from bozzetto.analysis.crash import (
    BitFlips,
    Byzantine,
    Crash,
    DroppedConnections,
    StuckAt,
    crash,
    crash_bound,
    critical_neurons,
    tolerance,
)
from bozzetto.analysis.crash.faults import struck
from bozzetto.analysis.crash.faulty import FaultySites
from bozzetto.analysis.crash.measure import share_interval, student_interval


@pytest.fixture(autouse=True)
def same_weights():
    """Torch's own initial weights, the same in every run."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        yield


def seeded(net, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(
                scale * torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5
            )
    return net


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mlp(*widths, act=nn.ReLU):
    layers = []
    for n, m in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(n, m), act()]
    return seeded(nn.Sequential(*layers, nn.Linear(*widths[-2:])))


class Residual(nn.Module):
    """Branches around the faulty places, and a size that is read from the input."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        h = self.first(x)
        h = h + torch.relu(self.second(torch.tanh(h)))
        return self.head(h.view(x.size(0), -1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.relu(self.layer(x)[0])[:, -1])


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.act, self.head = nn.GELU(), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.act(self.layer(x)).mean(1))


NETS = {
    "mlp": (mlp(4, 5, 6, 3), (4,)),
    "residual": (seeded(Residual()), (1, 4, 4)),
    "recurrent": (seeded(Recurrent()), (5, 3)),
    "encoder": (seeded(Encoder()), (5, 4)),
    "batch norm": (
        seeded(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(True), nn.Linear(4, 2))),
        (4,),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_many_patterns_at_once_give_what_one_at_a_time_gives(name):
    net, shape = NETS[name]
    x = random(3, *shape)
    sites = FaultySites(net, x)
    assert sites.default
    values = sites.values(x, sites.default)
    keep = {n: (random(7, *v.shape[1:], seed=3) > -0.5) for n, v in values.items()}
    with torch.no_grad():
        together = sites.run(x, 7, {n: lambda v, n=n: v * keep[n].unsqueeze(1) for n in keep})
        for i in range(7):
            alone = sites.run(x, 1, {n: lambda v, n=n, i=i: v * keep[n][i] for n in keep})
            torch.testing.assert_close(together[i], alone[0])
        torch.testing.assert_close(sites.run(x, 1, {})[0], net.eval()(x))
        net.train()


def test_a_faulty_run_gives_what_a_plain_hook_gives():
    net, x = mlp(4, 5, 6, 3), random(3, 4)
    keep = random(5, seed=1) > 0
    hook = net[1].register_forward_hook(lambda module, args, out: out * keep)
    hooked = net(x)
    hook.remove()
    found = FaultySites(net, x).run(x, 1, {"1": lambda v: v * keep})
    torch.testing.assert_close(found[0], hooked)


def exhaustive(net, x, p):
    """The mean |error| over all crash patterns of the one hidden layer."""
    width = net[0].out_features
    alive = torch.tensor(list(itertools.product([1.0, 0.0], repeat=width)))
    chance = torch.where(alive > 0, 1 - p, p).prod(1)
    hidden = net[1](net[0](x))
    errors = (net[2](hidden * alive.unsqueeze(1)) - net[2](hidden)).abs().mean((1, 2))
    return (chance * errors).sum().item()


@pytest.mark.parametrize("p", [0.05, 0.4])
def test_the_measured_error_is_the_expectation_over_all_patterns(p):
    net, x = mlp(3, 6, 2), random(4, 3)
    report = crash(net, [x[:3], x[3:]], p, patterns=15000, confidence=0.9999)
    (row,) = report.rows()
    assert row["error_low"] <= exhaustive(net, x, p) <= row["error_high"]
    assert row["error_high"] - row["error_low"] <= 0.6 * row["error"]
    assert report.accuracy is None


def test_the_measured_error_stays_below_the_bound():
    net, x = mlp(4, 16, 16, 3, act=nn.Tanh), random(5, 4)
    for p in (0.01, 0.1):
        (row,) = crash(net, [x], p, patterns=1000, confidence=0.9999).rows()
        assert row["error_low"] <= crash_bound(net, p, x=x).expected.mean()


def test_patterns_depend_on_the_seed_and_not_on_batches_or_chunks():
    net, x, y = mlp(4, 8, 8, 3), random(10, 4), torch.arange(10) % 3
    whole = crash(net, [(x, y)], [0.1, 0.3], patterns=150)
    split = crash(net, [(x[:6], y[:6]), (x[6:], y[6:])], [0.1, 0.3], patterns=150, rows=70)
    torch.testing.assert_close(whole.error, split.error)
    torch.testing.assert_close(whole.accuracy, split.accuracy)
    state = torch.random.get_rng_state()
    again = crash(net, [(x, y)], [0.1, 0.3], patterns=150)
    torch.testing.assert_close(again.error, whole.error, rtol=0, atol=0)
    torch.testing.assert_close(torch.random.get_rng_state(), state)
    other = crash(net, [(x, y)], [0.1, 0.3], patterns=150, seed=1)
    assert (other.error != whole.error).any()


def test_more_faults_only_join_those_of_a_smaller_p():
    net, x = mlp(4, 8, 3), random(4, 4)
    report = crash(net, [x], [0.05, 0.9], patterns=200)
    unhurt = report.error[1] == 0
    assert (report.error[0][unhurt] == 0).all()
    assert report.error[1].mean() > report.error[0].mean()


def test_accuracy_counts_right_answers_under_faults():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.copy_(torch.eye(2))
            layer.bias.zero_()
    net[2].bias.data.copy_(torch.tensor([0.0, 0.5]))
    x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    report = crash(net, [(x, y)], 0.25, patterns=2000, confidence=0.9999)
    (row,) = report.rows()
    assert report.healthy_accuracy == 1.0
    assert row["accuracy_low"] <= 1 - 0.25 / 2 <= row["accuracy_high"]  # only neuron 0 matters
    torch.testing.assert_close(report.unchanged, report.accuracy)


def test_a_stuck_neuron_outputs_its_constant_and_a_byzantine_one_stays_in_range():
    value, failed = random(6, 2, 5), random(6, 1, 5, seed=2) > 0
    generator = torch.Generator().manual_seed(0)
    for fault, low, high in ((Crash(), 0, 0), (StuckAt(3.0), 3, 3), (Byzantine(2.0, 4.0), 2, 4)):
        out = fault.output(value, failed, generator)
        hit = failed.expand_as(value)
        torch.testing.assert_close(out[~hit], value[~hit])
        assert (out[hit] >= low).all()
        assert (out[hit] <= high).all()
    assert out[hit].std() > 0.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_bits_flip_at_their_rate_each(dtype):
    word = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    weight, generator = random(50).to(dtype), torch.Generator().manual_seed(0)
    faulty = BitFlips().weights(weight, 0.1, 40, generator)
    changed = faulty.view(word) ^ weight.view(word)
    bits = 8 * dtype.itemsize
    rates = torch.stack([((changed >> i) & 1).double().mean() for i in range(bits)])
    spread = math.sqrt(0.1 * 0.9 / 2000)
    assert ((rates - 0.1).abs() < 5 * spread).all()
    assert (BitFlips().weights(weight, 0.0, 3, generator) == weight).all()


def test_connections_drop_at_their_rate():
    generator = torch.Generator().manual_seed(0)
    lost = (DroppedConnections().weights(torch.ones(20, 30), 0.2, 10, generator) == 0).double()
    assert abs(lost.mean() - 0.2) < 5 * math.sqrt(0.2 * 0.8 / 6000)


@pytest.mark.parametrize("fault", [DroppedConnections(), BitFlips()])
def test_weight_faults_run_like_a_model_with_those_weights(fault):
    net, x = mlp(3, 4, 2), random(5, 3)
    report = crash(net, [x], [0.0, 0.02], fault=fault, patterns=30)
    assert (report.error[0] == 0).all()
    assert (report.error[1] > 0).any()
    only = crash(net, [x], 1.0, fault=DroppedConnections(), layers=["2"], patterns=2)
    torch.testing.assert_close(
        only.error[0, 0].float(), (net(x) - net[2].bias).abs().mean().detach()
    )


def test_channels_fail_as_a_whole():
    net = nn.Sequential(nn.Conv1d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 12))
    with torch.no_grad():
        net[0].bias.fill_(5.0)
        net[3].weight.copy_(torch.eye(12))
    sites = FaultySites(net, random(2, 1, 4))
    from bozzetto.analysis.crash.faulty import broken_neurons

    run = broken_neurons(sites, Crash(), None, "channel")
    lost = (run(torch.zeros(1, 1, 4), 0.5, range(50), 0) - net[3].bias).reshape(
        50, 3, 4
    ).detach() < 1e-3
    assert (lost.all(2) == lost.any(2)).all()
    assert 0.2 < lost.double().mean() < 0.8


@pytest.mark.parametrize("layers", [None, ["3"]])
def test_critical_neurons_are_those_whose_crash_hurts(layers):
    net, x = mlp(4, 5, 6, 3), random(7, 4)
    found = critical_neurons(net, [x[:4], x[4:]], layers=layers, rows=9)
    assert list(found.scores) == (layers or ["1", "3"])
    for name, scores in found.scores.items():
        for i in range(len(scores)):
            keep = torch.ones(len(scores)).index_fill(0, torch.tensor([i]), 0.0)
            hook = net[int(name)].register_forward_hook(lambda module, args, out, k=keep: out * k)
            broken = net(x)
            hook.remove()
            torch.testing.assert_close(scores[i], (broken - net(x)).abs().mean().detach())
    rows = found.rows(3)
    assert rows[0]["error"] == max(scores.max().item() for scores in found.scores.values())
    assert found.scores[rows[0]["layer"]][tuple(rows[0]["neuron"])] == rows[0]["error"]


def test_the_gradient_finds_the_effect_of_a_crash_where_the_net_is_linear():
    net, x = mlp(4, 5, 3), random(7, 4)
    exact, first = (critical_neurons(net, [x], by=by).scores["1"] for by in ("crash", "gradient"))
    torch.testing.assert_close(first, exact)


def fewest(net, x, layer):
    """The largest f such that no choice of f crashes changes the prediction, by enumeration."""
    width, best = net[0].out_features, net(x).argmax()
    for f in range(1, width + 1):
        for chosen in itertools.combinations(range(width), f):
            keep = torch.ones(width).index_fill(0, torch.tensor(chosen), 0.0)
            hook = net[layer].register_forward_hook(lambda module, args, out, k=keep: out * k)
            changed = net(x).argmax() != best
            hook.remove()
            if changed:
                return f - 1
    return width


def test_tolerance_lies_between_the_certified_and_the_adversary():
    net, x = mlp(4, 7, 5, 3), random(6, 4)
    found = tolerance(net, x, "1", orders=20, patterns=1)
    truth = torch.tensor([fewest(net, row, 1) for row in x.split(1)])
    assert (found.certified <= truth).all()
    assert (truth <= found.greedy).all()
    assert (truth <= found.random).all()
    assert (found.certified < 7).any()
    assert found.width == 7


@pytest.mark.parametrize(("patterns", "order"), [(128, 7), (29, 2)])
def test_tolerance_is_exact_as_far_as_all_patterns_are_run(patterns, order):
    net, x = mlp(4, 7, 3), 4 * random(6, 4)
    found = tolerance(net, x, "1", orders=2, patterns=patterns)
    truth = torch.tensor([fewest(net, row, 1) for row in x.split(1)])
    near = truth < order
    torch.testing.assert_close(found.certified[near], truth[near])
    assert (found.certified[~near] >= order).all()
    assert (found.certified <= truth).all()
    assert near.any()


def test_tolerance_is_exact_where_the_rest_is_linear_and_two_classes_compete():
    net, x = mlp(4, 7, 2), random(6, 4)
    found = tolerance(net, x, "1", orders=2)
    truth = torch.tensor([fewest(net, row, 1) for row in x.split(1)])
    torch.testing.assert_close(found.certified, truth)
    torch.testing.assert_close(found.greedy, truth)


def test_share_intervals_hold_for_skewed_shares():
    """Values 0 or 1 with P(1) = 0.01: the interval at 90 % must miss in at most 10 % of draws."""
    values = torch.rand(300, 200, generator=torch.Generator().manual_seed(0)) < 0.01
    missed = sum(not low <= 0.01 <= high for low, high in (share_interval(v, 0.9) for v in values))
    assert missed <= 30
    low, high = student_interval(torch.tensor([1.0, math.inf]), 0.9)
    assert (low, high) == (-math.inf, math.inf)


def test_results_have_rows_and_figures():
    from matplotlib.figure import Figure

    net, x = mlp(4, 5, 3), random(4, 4)
    results = [
        crash(net, [(x, torch.arange(4) % 3)], [0.01, 0.1], patterns=10),
        crash(net, [x], 0.0, patterns=2),
        critical_neurons(net, [x]),
        tolerance(net, x, "1", orders=3),
    ]
    for result in results:
        ax = Figure().subplots()
        result.figure(ax)
        assert ax.lines
        assert all(isinstance(row, dict) for row in result.rows())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"p": 1.5}, r"\[0, 1\]"),
        ({"p": [0.1, -0.1]}, r"\[0, 1\]"),
        ({"p": []}, "at least one"),
        ({"batches": []}, "batch"),
        ({"layers": ["nowhere"]}, "nowhere"),
        ({"unit": "layer"}, "unit is 'neuron' or 'channel'"),
        ({"patterns": 0}, "patterns"),
        ({"confidence": 1.0}, "confidence"),
        ({"fault": BitFlips(), "layers": ["1"]}, "no weights"),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        crash(mlp(4, 5, 3), **{"batches": [random(2, 4)], "p": 0.1, **arguments})


def test_a_linear_model_has_nothing_to_crash():
    with pytest.raises(ValueError, match="no layer can fail"):
        crash(nn.Linear(3, 2), [random(2, 3)], 0.1)


def test_batches_of_several_inputs_are_refused():
    with pytest.raises(TypeError, match="one input tensor"):
        crash(mlp(4, 5, 3), [((random(2, 4), random(2, 4)), None)], 0.1)


class SequenceFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return torch.relu(self.layer(x)).cumsum(0)


def test_a_model_whose_rows_depend_on_each_other_is_refused():
    with pytest.raises(TypeError, match="batch first"):
        crash(SequenceFirst(), [random(2, 3)], 0.1)


def test_every_layer_named_has_weights_to_break():
    with pytest.raises(ValueError, match=r"no weights to break in \['typo'\]"):
        crash(mlp(4, 5, 3), [random(2, 4)], 0.1, fault=BitFlips(), layers=["0", "typo"])


def test_rates_between_the_steps_of_single_precision_are_kept():
    """A draw that falls on the step of p strikes with the chance that is left of the step."""
    found = []
    for seed in range(400):
        (value,) = torch.rand(1, generator=torch.Generator().manual_seed(seed)).tolist()
        rates = [value + part * 2.0**-24 for part in (0.0, 0.3, 0.6, 1.0)]
        draws = [struck(p, 1, generator=torch.Generator().manual_seed(seed)) for p in rates]
        found.append(torch.cat(draws).double())
    share = torch.stack(found).mean(0)
    assert [share[0], share[3]] == [0, 1]
    assert (torch.stack(found).diff(dim=1) >= 0).all()
    assert ((share - torch.tensor([0, 0.3, 0.6, 1])).abs() <= 5 * 0.5 / 20).all()


class Buffered(nn.Module):
    """A classifier without parameters."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.eye(3))

    def forward(self, x):
        return nn.functional.linear(torch.relu(x), self.weight)


def test_tolerance_draws_nothing_from_the_global_generator_and_needs_no_parameters():
    before = torch.random.get_rng_state()
    found = tolerance(Buffered(), random(2, 3).abs(), "relu", orders=2)
    assert (torch.random.get_rng_state() == before).all()
    assert (found.certified <= found.greedy).all()


def test_tolerance_needs_an_order():
    with pytest.raises(ValueError, match="orders >= 1"):
        tolerance(mlp(4, 5, 3), random(2, 4), "1", orders=0)
