"""V-transforms against sampling, against each other, and on the diagonal."""

import math

import pytest
import torch

from bozzetto.tangent import Erf, Exp, Gelu, HermiteSeries, Identity, Quadrature, Rectifier, Sin
from bozzetto.tangent.activation import Activation, Step
from bozzetto.tangent.quadrature import derivative, polar_pair

CLOSED = {
    "identity": Identity(),
    "relu": Rectifier(),
    "leaky relu": Rectifier(0.2),
    "absolute value": Rectifier(-1.0),
    "erf": Erf(),
    "exp": Exp(1.5),
    "sin": Sin(),
    "gelu": Gelu(),
}
P, Q, C = (
    torch.tensor(v, dtype=torch.float64)
    for v in ([1.0, 0.3, 2.0], [0.5, 1.2, 2.0], [0.4, -0.5, 1.9])
)
closed = pytest.mark.parametrize("phi", CLOSED.values(), ids=CLOSED)


def gaussian_pairs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    z = torch.randn(2, count, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    r = C / (P * Q).sqrt()
    return P.sqrt() * z[0], Q.sqrt() * (r * z[0] + (1 - r**2).sqrt() * z[1])


@closed
def test_a_moment_is_the_average_over_gaussian_pairs(phi: Activation):
    u, v = gaussian_pairs(200_000)
    for values, exact in (
        (phi(u) * phi(v), phi.moment(P, Q, C)),
        (derivative(phi)(u) * derivative(phi)(v), phi.slope(P, Q, C)),
        (phi(u), phi.mean(P)),
        (derivative(phi)(u), phi.mean_slope(P)),
    ):
        error, spread = values.mean(0) - exact, values.std(0) / len(values) ** 0.5
        assert (error.abs() <= 5 * spread + 1e-12).all()


@closed
def test_the_slope_is_the_derivative_of_the_moment(phi: Activation):
    c = C.clone().requires_grad_()
    (grad,) = torch.autograd.grad(phi.moment(P, Q, c).sum(), c)
    torch.testing.assert_close(phi.slope(P, Q, C), grad, rtol=1e-9, atol=1e-9)


@closed
def test_both_are_the_two_of_them(phi: Activation):
    moment, slope = phi.both(P, Q, C)
    torch.testing.assert_close(moment, phi.moment(P, Q, C), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(slope, phi.slope(P, Q, C), rtol=1e-13, atol=1e-14)


@closed
def test_polar_quadrature_gives_every_closed_form(phi: Activation):
    general = Quadrature(phi, rule="polar")
    for name in ("moment", "slope"):
        exact, found = getattr(phi, name)(P, Q, C), getattr(general, name)(P, Q, C)
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(general.mean(P), phi.mean(P), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(general.mean_slope(P), phi.mean_slope(P), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("phi", [Erf(), Sin(), Gelu()], ids=str)
def test_hermite_quadrature_and_series_give_smooth_closed_forms(phi: Activation):
    p, q, c = P / 2, Q / 2, C / 2 * 0.9
    for general in (Quadrature(phi, nodes=60), HermiteSeries(phi, terms=80)):
        for name in ("moment", "slope"):
            exact, found = getattr(phi, name)(p, q, c), getattr(general, name)(p, q, c)
            torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("nodes", [6, 10, 20])
def test_the_stated_error_of_a_quadrature_covers_the_true_one(nodes: int):
    rule = Quadrature(torch.tanh, nodes=nodes)
    fine = Quadrature(torch.tanh, nodes=150)
    true = (rule.moment(P, Q, C) - fine.moment(P, Q, C)).abs().max()
    assert true <= 2 * rule.error(P, Q, C)


@pytest.mark.parametrize("terms", [10, 20, 40])
def test_the_stated_error_of_a_series_covers_the_true_one(terms: int):
    series = HermiteSeries(torch.tanh, terms)
    fine = Quadrature(torch.tanh, nodes=150)
    true = (series.moment(P, P, 0.999 * P) - fine.moment(P, P, 0.999 * P)).abs().max()
    assert 1e-12 < true <= series.error(P)


def test_diagonals_are_exact_where_arccos_would_lose_half_the_digits():
    p = torch.rand(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    c = p * (1 - 2e-16)
    phi = Rectifier()
    torch.testing.assert_close(phi.moment(p, p, c), p / 2, rtol=1e-14, atol=0)
    torch.testing.assert_close(phi.slope(p, p, c), torch.full_like(p, 0.5), rtol=1e-14, atol=0)
    torch.testing.assert_close(phi.both(p, p, c)[1], torch.full_like(p, 0.5), rtol=1e-14, atol=0)


def test_a_zero_input_has_finite_moments():
    zero = torch.zeros(2, dtype=torch.float64)
    series = HermiteSeries(torch.tanh)
    torch.testing.assert_close(series.mean_slope(zero), torch.ones_like(zero))
    torch.testing.assert_close(series.slope(zero, P[:2], zero), series.mean_slope(P[:2]))
    for phi in (Rectifier(), Erf(), Gelu(), Sin(), series):
        for value in (*phi.both(zero, P[:2], zero), phi.moment(zero, zero, zero)):
            assert value.isfinite().all()


def test_moments_of_two_different_functions_match_sampling():
    u, v = gaussian_pairs(200_000)
    values = Rectifier()(u) * torch.tanh(v)
    error = values.mean(0) - polar_pair(Rectifier(), torch.tanh, P, Q, C)
    assert (error.abs() <= 5 * values.std(0) / len(values) ** 0.5).all()


def test_a_step_has_moments_but_no_slope():
    value = Step().moment(P, P, torch.zeros_like(P))
    torch.testing.assert_close(value, torch.full_like(P, 0.25))
    torch.testing.assert_close(Step().mean_slope(P), 1 / (2 * math.pi * P).sqrt())
    with pytest.raises(ValueError, match="no gradient"):
        Step().slope(P, P, P)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="'hermite' or 'polar'"):
        Quadrature(torch.tanh, rule="simpson")  # type: ignore[arg-type]
