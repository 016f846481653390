"""The comparison of two networks' tangent kernels."""

import copy

import pytest
import torch
from torch import nn

from bozzetto.analysis.kernel import alignment, compare_kernels, kernel
from bozzetto.tangent.empirical import empirical_ntk


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network() -> nn.Sequential:
    layers = [nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(), nn.Linear(16, 3)]
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(draw(*p.shape, seed=i) / 2)
    return model


def test_a_network_compared_with_itself_is_itself():
    model, x = network().train(), draw(12, 4)
    result = kernel(model, copy.deepcopy(model), x)
    assert abs(result.alignment - 1) < 1e-12
    assert abs(result.scale - 1) < 1e-12
    torch.testing.assert_close(result.curves[0], result.curves[1])
    assert result.dimensions[0] == result.dimensions[1]
    assert all(m.training for m in model.modules())


def test_a_worse_copy_is_less_aligned():
    model, x = network(), draw(12, 4)
    found = []
    for noise in (0.0, 0.1, 1.0):
        small = copy.deepcopy(model)
        with torch.no_grad():
            small[0].weight += noise * draw(16, 4, seed=9)
        found.append(kernel(model, small, x).alignment)
    assert found[0] > 1 - 1e-12
    assert found[0] > found[1] > found[2]


def test_curves_are_gradient_flow_on_the_linearised_network():
    target = empirical_ntk(network().eval(), draw(8, 4))
    signal = draw(8, 1)
    result = compare_kernels(target, 0.5 * target, signal)
    signal = signal - signal.mean()
    left, steps = signal.clone(), 4000
    horizon = result.times[40] / result.spectra[0, 0]
    for _ in range(steps):
        left = left - horizon / steps * target @ left / 8
    torch.testing.assert_close(
        result.curves[0, 40], left.norm() / signal.norm(), rtol=1e-3, atol=1e-3
    )
    assert abs(result.scale - 0.5) < 1e-12
    assert abs(result.alignment - 1) < 1e-12
    assert 1.8 < result.half_times[1] / result.half_times[0] < 2.3


def test_effective_dimension_counts_large_eigenvalues():
    values = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    result = compare_kernels(values.diag(), values.diag(), draw(6, 1), ridge=1e-6)
    assert abs(result.dimensions[0] - 3) < 1e-4


def test_alignment_ignores_scale_and_constants():
    a, b = draw(6, 8), draw(6, 8, seed=1)
    a, b = a @ a.T, b @ b.T
    assert abs(alignment(a, 3 * a + 2) - 1) < 1e-12
    assert alignment(a, b) < 0.9


def test_the_result_has_rows_and_a_figure():
    from matplotlib.figure import Figure

    model, x = network(), draw(6, 4)
    result = kernel(model, model, x, signal=torch.arange(6.0))
    target, small = result.rows()
    assert target["network"] == "target"
    assert small["top eigenvalue"] == target["top eigenvalue"]
    ax = Figure().add_subplot()
    result.figure(ax)
    assert len(ax.lines) == 2
    assert "alignment 1.000" in ax.get_title()


def test_bad_arguments_are_named():
    model = network()
    with pytest.raises(ValueError, match="at least 2 inputs"):
        kernel(model, model, draw(1, 4))
    with pytest.raises(ValueError, match="as many signals"):
        kernel(model, model, draw(4, 4), signal=torch.zeros(3))
    with pytest.raises(ValueError, match="ridge must be positive"):
        kernel(model, model, draw(4, 4), ridge=0.0)
    with pytest.raises(ValueError, match="constant"):
        kernel(model, model, draw(4, 4), signal=torch.ones(4))
