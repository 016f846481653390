"""Tucker forms against plain truncation of the weight, brute force and their own shortcuts."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import bozzetto as bz
from bozzetto.linalg import random_normal
from bozzetto.maps import linear_map
from bozzetto.methods import Objective, Tucker, make_method
from bozzetto.methods.regression import improve_inputs, leading_inputs, regress, regression_errors
from bozzetto.tensors import hooi
from bozzetto.testing.methods import calibration


def normal(*shape: int, seed: int = 0) -> Tensor:
    return random_normal(seed, torch.Size(shape).numel()).view(shape)


def objective(groups: int = 1) -> Objective:
    layer = nn.Conv2d(10, 12, 3, groups=groups, dtype=torch.float64)
    m = linear_map(layer)
    return Objective(m, calibration(m, "ordinary"))


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Sequential, Tensor, Tensor]:
    """A small convolutional network trained on digits; images to calibrate, images held out."""
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16
    y = torch.from_numpy(labels)
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10),
        )  # fmt: skip
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for i in range(150):
            chosen = slice(64 * (i % 18), 64 * (i % 18) + 64)
            optimizer.zero_grad()
            F.cross_entropy(net(x[chosen]), y[chosen]).backward()
            optimizer.step()
    return net, x[:600], x[1200:]


def relative(net: nn.Sequential, x: Tensor, weight: Tensor, bias: Tensor) -> float:
    """Squared error of the second convolution's output, of its variance."""
    conv = net[2]
    assert isinstance(conv, nn.Conv2d)
    with torch.no_grad():
        h = net[1](net[0](x))
        want = conv(h)
        got = F.conv2d(h, weight.float(), bias.float(), padding=1)
        centred = want - want.mean((0, 2, 3), keepdim=True)
        return float((got - want).square().sum() / centred.square().sum())


@pytest.mark.parametrize(("keep", "times"), [(0.5, 20), (0.25, 8)])
def test_on_a_trained_convolution_the_error_is_a_fraction_of_plain_truncation(
    digits: tuple[nn.Sequential, Tensor, Tensor], keep: float, times: float
) -> None:
    net, known, unseen = digits
    m = linear_map(net[2])
    stats = replace(bz.collect(net, [known])["2"], gradient=None)
    method = Tucker()
    size = method.most(m, keep)
    layer = method.build(m, size, 0)
    method.fit_(layer, Objective(m, stats))
    r_in, r_out = method.ranks(m, size)
    plain = hooi(m.weight.detach().double(), (r_out, r_in, 3, 3), n_iter=100).full()
    assert m.bias is not None
    bias = method.bias(layer)
    assert bias is not None
    for x in (known, unseen):
        ours = relative(net, x, method.weight(layer, m).reshape(m.weight.shape), bias)
        assert times * ours < relative(net, x, plain, m.bias)


@pytest.mark.parametrize("groups", [1, 2])
def test_one_factorisation_tells_the_error_of_every_pair_of_ranks(groups: int) -> None:
    o = objective(groups)
    a = leading_inputs(o)
    pairs = [(1, 1), (1, 4), (2, 6), (3, 2), (5, 5)]
    for (r_in, r_out), told in regression_errors(o, pairs).items():
        fit = regress(o, a[:, :r_in], r_out).weight()
        assert told == pytest.approx(o.error(o.w - fit), rel=1e-8)


def test_given_the_inputs_no_outputs_and_core_are_better() -> None:
    o = objective()
    best = regress(o, leading_inputs(o)[:, :4], 5)
    reached = o.error(o.w - best.weight())
    for seed in range(20):
        b = best.b + 1e-3 * normal(*best.b.shape, seed=seed)
        core = best.core + 1e-3 * normal(*best.core.shape, seed=seed + 50)
        assert o.error(o.w - best._replace(b=b, core=core).weight()) > reached


def test_improving_the_inputs_ends_at_their_own_least_squares() -> None:
    o = objective()
    start = regress(o, leading_inputs(o)[:, :4], 5)
    a = improve_inputs(o, start, steps=60).requires_grad_()
    change = o.w - start._replace(a=a).weight()
    assert o.moment is not None
    assert o.gradient is not None
    (slope,) = torch.autograd.grad(((o.gradient @ change) * (change @ o.moment)).sum(), a)
    assert slope.abs().max() < 1e-8 * o.energy


def test_rounds_only_lower_the_error() -> None:
    o = objective()
    errors = []
    for rounds in (0, 1, 2, 4, 8):
        method = Tucker(inputs=4, rounds=rounds)
        layer = method.build(o.map, 5, 0)
        method.fit_(layer, o)
        errors.append(o.error(o.w - method.weight(layer, o.map)))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.99 * errors[0]


def test_the_forms_hold_the_best_pair_of_ranks_within_every_budget() -> None:
    o = objective()
    m, forms = o.map, Tucker().forms(o)
    pairs = [(i, k) for i in range(1, 11) for k in range(1, 13) if k <= 9 * i]
    cost = {(i, k): Tucker(inputs=i).values(m, k) for i, k in pairs}
    errors = regression_errors(o, pairs)
    for keep in (0.15, 0.3, 0.6, 0.9):
        limit = keep * m.weight.numel()
        best = min(errors[pair] for pair in pairs if cost[pair] <= limit)
        found = min(f.error for f in forms if f.method.values(m, f.size) <= limit)
        assert best <= found <= best / 0.9


def test_a_choice_of_inputs_is_kept_in_the_options() -> None:
    assert Tucker(inputs=7).options() == {"inputs": 7}
    assert Tucker().options() == {}


@pytest.mark.parametrize(
    "options", [{"inputs": 0}, {"inputs": -3}, {"inputs": 2.5}, {"rounds": -1}]
)
def test_options_without_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="needs whole numbers, inputs >= 1 and rounds >= 0; got"):
        make_method("tucker", dict(options))
