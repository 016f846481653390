"""Bounds on what several crashes do beyond the sum of each one, against all patterns of them."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bozzetto.analysis.crash import activation
from bozzetto.analysis.crash.responses import Crashes, beyond, crossing, remainders
from bozzetto.analysis.crash.sums import mean_absolute, tail
from bozzetto.analysis.crash.symbols import Rest

ALIVE = torch.tensor(list(itertools.product([False, True], repeat=7)))
RATES = torch.tensor([0.3] * 4 + [0.04] * 3, dtype=torch.float64)
CRASHED = (~ALIVE).double()  # (patterns, 7)
CHANCE = torch.where(ALIVE, 1 - RATES, RATES).prod(1)


def crashes(gains):
    c = gains.reshape(-1, 1, 1)
    return Crashes([c[:4], c[4:]], [0.3, 0.04], torch.zeros(1, 1, dtype=torch.float64))


def mean(v):
    return (CHANCE * v).sum()


def pair(v):
    return mean(v), mean(v**2).sqrt()


def rest(v):
    return Rest(pair(v.clamp(min=0)), pair((-v).clamp(min=0)), pair(v.abs()))


def holds(bound, exact):
    return all(b.min() >= e * (1 - 1e-9) - 1e-12 for b, e in zip(bound, exact, strict=True))


def rest_holds(bound, exact):
    return all(itertools.starmap(holds, zip(bound.pairs(), exact.pairs(), strict=True)))


def errors_beside(s, d, kind):
    """Errors that depend on the crashes in ways that are hard on the bounds."""
    return {
        "none": torch.zeros_like(s),
        "falls back": -(s - d).clamp(min=0),
        "crosses at once": (d - s).clamp(min=0) + 0.1 * CRASHED[:, 0],
        "with two": CRASHED[:, 0] * CRASHED[:, 1] * (s.abs() + d),
        "against two": -CRASHED[:, 0] * CRASHED[:, 5] * (s.abs() + d),
    }[kind]


kinds = st.sampled_from(["none", "falls back", "crosses at once", "with two", "against two"])
gains = st.lists(st.floats(-2, 2, allow_subnormal=False), min_size=7, max_size=7)


@settings(max_examples=150, deadline=None)
@given(c=gains, d=st.floats(1e-3, 3), kind=kinds)
def test_crashes_beyond_a_kink_are_bounded(c, d, kind):
    c, gap = torch.tensor(c, dtype=torch.float64), torch.full((1, 1), d, dtype=torch.float64)
    s = CRASHED @ c
    over, masks = beyond(crashes(c), gap)
    passed, alone = (s - d).clamp(min=0), CRASHED @ (c - d).clamp(min=0)
    assert holds(over, pair(passed))
    assert rest_holds(masks, rest(passed - alone))
    e = errors_beside(s, d, kind)
    found = crossing(crashes(c), gap, rest(e), over)
    assert rest_holds(found, rest((s + e - d).clamp(min=0) - passed))


@settings(max_examples=150, deadline=None)
@given(
    c=gains,
    z=st.floats(-3, 3),
    kind=kinds,
    act=st.sampled_from([nn.ReLU, nn.LeakyReLU, nn.Hardtanh, nn.Tanh, nn.SiLU, nn.Softshrink]),
)
def test_what_an_activation_leaves_is_bounded(c, z, kind, act):
    rule, c = activation(act()), torch.tensor(c, dtype=torch.float64)
    s, anchor = CRASHED @ c, torch.tensor(z, dtype=torch.float64)
    e = errors_beside(s, 0.5, kind)
    found = remainders(rule, crashes(c), anchor.reshape(1, 1), rest(e))
    assert found is not None
    masks, errors = found
    phi = rule.function
    alone = phi(anchor) + CRASHED @ (phi(anchor + c) - phi(anchor))
    assert rest_holds(masks, rest(phi(anchor + s) - alone))
    bent = phi(anchor + s + e) - phi(anchor + s) - rule.slope(anchor.reshape(1)) * e
    assert rest_holds(errors, rest(bent))


def test_one_crash_alone_leaves_nothing():
    c = torch.zeros(7, dtype=torch.float64)
    c[2] = -1.7
    none = rest(torch.zeros(len(ALIVE), dtype=torch.float64))
    for act in (nn.ReLU, nn.Tanh):
        found = remainders(activation(act()), crashes(c), torch.ones(1, 1).double(), none)
        assert found is not None
        for left in found:
            torch.testing.assert_close(left.both[0], torch.zeros(1, 1).double())


def test_moments_of_crashes_are_those_of_all_patterns():
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(7, generator=generator, dtype=torch.float64)
    s, found = CRASHED @ c, crashes(c)
    for value, exact in (
        (found.mean(), mean(s)),
        (found.root(), pair(s)[1]),
        (found.variance(), mean((s - mean(s)) ** 2)),
        (found.fourth(), mean((s - mean(s)) ** 4)),
    ):
        torch.testing.assert_close(value.squeeze(), exact)
    for d in (0.01, 0.3, 1.0, 3.0):
        assert found.chance_above(torch.tensor([[d]]).double()) >= mean((s > d).double())


@pytest.mark.parametrize("start", [0.0, 0.4, -3.0])
def test_the_distribution_of_a_sum_is_never_below_and_close(start):
    generator = torch.Generator().manual_seed(1)
    c = torch.randn(7, generator=generator, dtype=torch.float64)
    at = torch.tensor([start], dtype=torch.float64)
    exact = mean((start + CRASHED @ c).abs())
    found = mean_absolute(at, c.unsqueeze(1), RATES).squeeze()
    assert exact * (1 - 1e-12) <= found <= exact * 1.001


def test_rare_crashes_from_nothing_have_the_mean_of_each_alone():
    c = torch.linspace(-1, 2, 40, dtype=torch.float64).unsqueeze(1)
    found = mean_absolute(torch.zeros(1).double(), c, torch.full((40,), 1e-9).double())
    torch.testing.assert_close(found.squeeze(), 1e-9 * c.abs().sum(), rtol=1e-6, atol=0)


@settings(max_examples=100, deadline=None)
@given(gains, st.floats(0.01, 5), st.sampled_from([8, 64]))
def test_the_upper_tail_of_a_sum_is_never_too_small(gains, d, points):
    c, gap = torch.tensor(gains, dtype=torch.float64), torch.tensor([d], dtype=torch.float64)
    found = tail(c.unsqueeze(1), RATES, points)
    over = (CRASHED @ c - d).clamp(min=0)
    if found is None:
        assert over.max() == 0
        return
    assert holds(found.above(gap), pair(over))
    assert found.chance_above(gap) >= mean((CRASHED @ c > d).double()) - 1e-12


def test_the_upper_tail_is_near_the_exact_one():
    c = torch.tensor([0.9, -0.3, 0.4, 0.7, -0.8, 0.2, 0.5], dtype=torch.float64)
    for d in (0.3, 0.8, 1.3):
        first, second = tail(c.unsqueeze(1), RATES, 256).above(torch.tensor([d]).double())
        exact = pair((CRASHED @ c - d).clamp(min=0))
        assert first <= 1.02 * exact[0]
        assert second <= 1.02 * exact[1]
