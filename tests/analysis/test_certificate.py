import copy
import itertools
from collections import OrderedDict

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.testing import assert_close

import bozzetto as bz
from bozzetto.analysis.certificate import certificate
from bozzetto.analysis.unbiased import expected_error
from bozzetto.maps import linear_map
from bozzetto.methods import make_method
from bozzetto.sketch import make_sketch


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5)
    return net.eval()


class TiedLanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(40, 12), nn.Linear(12, 40, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x))


class SharedLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 12)

    def forward(self, x):
        return self.layer(torch.relu(self.layer(x)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 10, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


def positive(*shape):
    """Inputs with a mean far from zero, as after a ReLU."""
    return [normal(*shape, seed=i).abs() + 1 for i in range(3)]


def indices(*shape):
    return [torch.randint(40, shape, generator=torch.Generator().manual_seed(i)) for i in range(3)]


CASES = {
    "perceptron": (
        lambda: nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 10)),
        positive(20, 16),
    ),
    "no bias": (lambda: nn.Sequential(nn.Linear(16, 24, bias=False)), positive(20, 16)),
    "the model is the layer": (lambda: nn.Linear(20, 20), positive(5, 7, 20)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, (3, 2), padding="same", padding_mode="circular", groups=2),
            nn.ReLU(),
            nn.Conv2d(16, 12, 3, dilation=2, padding=2, bias=False),
        ),
        positive(4, 3, 9, 9),
    ),
    "one dimension": (lambda: nn.Sequential(nn.Conv1d(8, 12, 3)), positive(4, 8, 11)),
    "unbatched": (lambda: nn.Sequential(nn.Conv1d(8, 12, 3)), positive(8, 11)),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(8, 12, 3, stride=2, output_padding=1, groups=2)),
        positive(4, 8, 5, 5),
    ),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(40, 16, padding_idx=3), nn.Linear(16, 16)),
        indices(4, 9),
    ),
    "tied": (TiedLanguageModel, indices(4, 9)),
    "shared": (SharedLayer, positive(6, 12)),
    "recurrent": (Recurrent, positive(3, 5, 8)),
    "transformer": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(12, 2, 24, batch_first=True), 1, enable_nested_tensor=False
        ),
        positive(3, 6, 12),
    ),
}
every_case = pytest.mark.parametrize(("build", "batches"), CASES.values(), ids=CASES)
every_method = pytest.mark.parametrize("method", ["lowrank", "sketched"])


def assert_bounded(made):
    assert made.layers
    for layer in made.layers:
        assert 0 < layer.measured <= layer.bound * (1 + 1e-12), layer


@every_method
@every_case
def test_the_bound_holds(build, batches, method):
    model = seeded(build())
    small, plan = bz.compress(model, 0.7, batches, methods=method)
    assert_bounded(certificate(model, small, plan, batches))
    assert_bounded(certificate(model, small, plan, [b.flip(0) for b in batches[:1]]))


@every_method
@every_case
def test_the_bound_holds_whatever_became_of_the_weights(build, batches, method):
    model = seeded(build())
    small, plan = bz.compress(model, 0.7, batches, methods=method)
    assert_bounded(certificate(model, seeded(small, 5), plan, batches))
    sketched, plan = bz.sketch(model, 0.7, seed=2)
    assert_bounded(certificate(model, sketched, plan, batches))


@torch.no_grad()
def test_the_measured_error_is_that_of_the_layers_on_the_same_inputs():
    model = seeded(CASES["perceptron"][0]())
    batches = CASES["perceptron"][1]
    small, plan = bz.compress(model, 0.5, batches)
    made = {x.layer: x for x in certificate(model, small, plan, batches).layers}
    assert set(made) == {"0", "2"}
    x = torch.cat(batches).double()
    dense, changed = copy.deepcopy(model).double(), copy.deepcopy(small).double()
    for layer, inputs in (("0", x), ("2", torch.relu(dense[0](x)))):
        old, new = dense[int(layer)], changed[int(layer)]
        error, signal = old(inputs) - new(inputs), inputs @ old.weight.T
        assert made[layer].measured == pytest.approx(float(error.norm() / signal.norm()))


@torch.no_grad()
def test_the_bound_is_the_spectral_norm_times_the_spread_of_the_inputs():
    model = seeded(nn.Sequential(nn.Linear(16, 24)))
    batches = positive(20, 16)
    small, plan = bz.compress(model, 0.5, batches)
    small = seeded(small, 3)
    layer = certificate(model, small, plan, batches).layers[0]
    x, old, new = torch.cat(batches).double(), model[0].double(), small[0].double()
    change = old.weight - new[1].weight @ new[0].weight
    gain = torch.linalg.svdvals(change)[0]
    offset = change @ x.mean(0) + old.bias - new[1].bias
    square = gain**2 * (x - x.mean(0)).square().sum(1).mean() + offset.square().sum()
    assert layer.gain == pytest.approx(float(gain), rel=1e-6)
    assert layer.offset == pytest.approx(float(offset.norm()), rel=1e-6)
    signal = (x @ old.weight.T).square().sum(1).mean()
    assert layer.bound == pytest.approx(float((square / signal).sqrt()), rel=1e-6)
    anything = normal(500, 16, seed=9).double() * 10
    error = (old(anything) - new(anything)).norm(dim=1)
    assert (error <= gain * (anything - x.mean(0)).norm(dim=1) + offset.norm()).all()


def test_a_bound_that_can_be_reached_is_reached():
    model = seeded(nn.Sequential(nn.Linear(6, 6, bias=False)))
    small, plan = bz.compress(model, 0.7, positive(4, 6))
    change = (model[0].weight - small[0][1].weight @ small[0][0].weight).detach()
    worst = torch.linalg.svd(change)[2][0]
    layer = certificate(model, small, plan, [torch.stack([worst, -worst])]).layers[0]
    assert layer.measured == pytest.approx(layer.bound, rel=1e-5)


def test_a_tied_embedding_has_a_row_of_its_own():
    model = seeded(TiedLanguageModel())
    small, plan = bz.compress(model, 0.7, indices(4, 9))
    made = certificate(model, small, plan, indices(4, 9))
    assert {x.layer for x in made.layers} == {"head", "embedding"}


@torch.no_grad()
@pytest.mark.parametrize("sides", ["each", "in", "out", "both"])
def test_a_sketched_head_and_its_tied_embedding_hold_one_weight(sides):
    model = seeded(TiedLanguageModel())
    small, plan = bz.sketch(model, 0.7, sides=sides)
    values = sum(p.numel() for p in small.parameters())
    method = make_method(plan.choices["head"].method, plan.choices["head"].options)
    weight = method.weight(small.head, linear_map(model.head))[0].float()
    assert values == plan.small["params"]
    assert_close(small.embedding(torch.arange(40)), weight)


def test_nothing_is_changed():
    model = seeded(CASES["convolutions"][0]()).train()
    batches = CASES["convolutions"][1]
    small, plan = bz.compress(model, 0.5, batches)
    small.train()
    before = [copy.deepcopy(net.state_dict()) for net in (model, small)]
    certificate(model, small, plan, batches)
    for net, state in zip((model, small), before, strict=True):
        assert_close(dict(net.state_dict()), dict(state), rtol=0, atol=0)
        assert all(module.training and not module._forward_hooks for module in net.modules())


def test_fresh_sketches_are_shown_beside_the_papers_estimate():
    model = seeded(nn.Sequential(nn.Linear(16, 24)))
    batches = positive(20, 16)
    small, plan = bz.compress(model, 0.5, batches, methods="sketched")
    layer = certificate(model, small, plan, batches).layers[0]
    x = torch.cat(batches).double()
    expected = expected_error(model[0].weight, x.T @ x / len(x), layer.size)
    assert layer.unbiased == pytest.approx(expected, rel=1e-6)
    assert layer.measured < layer.unbiased
    small, plan = bz.compress(model, 0.5, batches)
    assert certificate(model, small, plan, batches).layers[0].unbiased is None


@pytest.mark.parametrize(("terms", "k"), [(1, 3), (2, 2)])
def test_the_expected_error_is_that_of_the_draws(terms, k):
    w, x = normal(6, 8, seed=1).double(), normal(8, seed=2).double()
    draws = []
    for i in range(1500):
        total = torch.zeros_like(w)
        for t in range(terms):
            u1 = make_sketch("sign", 6, k, seed=10 * i + t).dense().double()
            u2 = make_sketch("sign", 8, k, seed=10 * i + 5 + t).dense().double()
            total += (u1.T @ (u1 @ w) + (w @ u2.T) @ u2) / (2 * terms)
        draws.append(((total - w) @ x).square().sum() / (w @ x).square().sum())
    errors = torch.stack(draws)
    expected = expected_error(w, torch.outer(x, x), k, terms=terms) ** 2
    assert abs(errors.mean() - expected) <= 5 * errors.std() / len(draws) ** 0.5


def test_the_expected_error_of_a_joint_sketch_of_patches_is_that_of_the_draws():
    taps, k = 2, 2
    w, x = normal(5, 4 * taps, seed=1).double(), normal(4 * taps, seed=2).double()
    draws = []
    for i in range(1500):
        u1 = make_sketch("sign", 5, k, seed=2 * i).dense().double()
        u2 = make_sketch("sign", 4 * taps, k * taps, seed=2 * i + 1).dense().double()
        error = ((u1.T @ (u1 @ w) + (w @ u2.T) @ u2) / 2 - w) @ x
        draws.append(error.square().sum() / (w @ x).square().sum())
    errors = torch.stack(draws)
    expected = expected_error(w, torch.outer(x, x), k, taps=taps) ** 2
    assert abs(errors.mean() - expected) <= 5 * errors.std() / len(draws) ** 0.5


def test_at_compression_c_of_a_square_layer_the_estimate_is_worse_than_zero():
    n, k = 64, 4  # 8 times fewer values
    error = expected_error(normal(n, n).double(), torch.eye(n).double(), k)
    assert error == pytest.approx(((n + n - 2) / (4 * k)) ** 0.5, rel=1e-9)
    assert error > 1


@pytest.mark.parametrize(
    ("moment", "k", "terms", "message"),
    [
        (torch.eye(4), 0, 1, "k >= 1"),
        (torch.eye(4), 1, 0, "terms >= 1"),
        (torch.eye(3), 1, 1, r"needs a moment \(d, d\)"),
    ],
)
def test_an_estimate_that_cannot_be_is_refused(moment, k, terms, message):
    with pytest.raises(ValueError, match=message):
        expected_error(torch.ones(5, 4), moment, k, terms=terms)


def test_bad_input_is_refused():
    model = seeded(nn.Sequential(nn.Linear(16, 24)))
    batches = positive(20, 16)
    small, plan = bz.compress(model, 0.5, batches)
    with pytest.raises(ValueError, match="at least one batch"):
        certificate(model, small, plan, [])
    with pytest.raises(ValueError, match="another model"):
        certificate(nn.Sequential(nn.ReLU()), small, plan, batches)
    with pytest.raises(ValueError, match="another plan"):
        certificate(model, nn.Sequential(), plan, batches)
    with pytest.raises(ValueError, match="layer '0' needs finite inputs"):
        certificate(model, small, plan, [batches[0] / 0])


def test_a_layer_that_is_not_reached_is_named():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.left(x) if x.mean() > 0 else self.right(x)

    model, both = seeded(Branches()), [torch.ones(4, 8), -torch.ones(4, 8)]
    small, plan = bz.compress(model, 0.8, [b + normal(4, 8) for b in both])
    missed = certificate(model, small, plan, both)
    assert {x.layer for x in missed.layers} == set(plan.choices) == {"left", "right"}
    with pytest.raises(ValueError, match="not 'right'"):
        certificate(model, small, plan, both[:1])


def test_it_shows_itself():
    model = seeded(CASES["perceptron"][0]())
    batches = CASES["perceptron"][1]
    made = certificate(model, *bz.compress(model, 0.5, batches), batches)
    rows = made.rows()
    assert [row["layer"] for row in rows] == ["0", "2"]
    assert all({"bound", "measured", "gain", "offset"} <= row.keys() for row in rows)
    ax = Figure().subplots()
    made.figure(ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "2"]
    points = itertools.chain.from_iterable(line.get_xdata() for line in ax.get_lines())
    assert set(points) == {x for row in rows for x in (row["bound"], row["measured"])}


class Keyword(nn.Module):
    """Its layer is called by keyword."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 12)

    def forward(self, x):
        return self.layer(input=x)


def test_a_layer_may_be_called_by_keyword():
    made = []
    for kind in (Keyword, lambda: nn.Sequential(OrderedDict(layer=nn.Linear(12, 12)))):
        model, batches = seeded(kind()), [normal(30, 12)]
        small, plan = bz.compress(model, 0.5, batches)
        made.append(certificate(model, small, plan, batches).layers)
    assert made[0] == made[1]
