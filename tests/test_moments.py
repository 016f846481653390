"""Moments that are too wide to hold: their sketch, the metric it gives, and what it costs."""

import pytest
import torch
from torch import Tensor, nn

import bozzetto as bz
from bozzetto import moments, refit, stats
from bozzetto.linalg import seeded
from bozzetto.maps import linear_map
from bozzetto.methods import LowRank, Objective
from bozzetto.methods import method as method_module
from bozzetto.moments import OUTLIER, Products, SketchedMoment, damped, metric_of
from bozzetto.stats import Stats


def rows(count: int = 400, n: int = 60, decay: float = 1.0) -> Tensor:
    """Correlated rows with an offset, (1, count, n), float64."""
    with seeded(0, torch.device("cpu")):
        mix = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0]
        scales = torch.arange(1, n + 1, dtype=torch.float64) ** -decay
        return (torch.randn(count, n, dtype=torch.float64) * scales @ mix.T + 0.3).unsqueeze(0)


def dense(moment: SketchedMoment) -> Tensor:
    diagonal, factor = moment.approximate()
    return torch.diag_embed(diagonal) + factor @ factor.mT


def test_a_moment_of_low_rank_is_kept_exactly() -> None:
    x = rows()
    x[..., 5:] = x[..., :5] @ rows(5, 55)[0]
    kept = SketchedMoment.of(x, rank=16)
    torch.testing.assert_close(dense(kept), x.mT @ x)


def test_the_diagonal_is_always_exact() -> None:
    x = rows()
    kept = SketchedMoment.of(x, rank=8)
    exact = (x.mT @ x).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(dense(kept).diagonal(dim1=-2, dim2=-1), exact)


def test_sums_and_centring_commute_with_sketching() -> None:
    x = rows()
    mean = x.mean(1)
    parts = SketchedMoment.of(x[:, :150], 12) + SketchedMoment.of(x[:, 150:], 12)
    whole = SketchedMoment.of(x - mean.unsqueeze(1), 12) / 400
    centred = (parts / 400).centred(mean)
    torch.testing.assert_close(centred.product, whole.product)
    torch.testing.assert_close(centred.diagonal, whole.diagonal)


@pytest.mark.parametrize("kind", ["full", "diagonal", "sketched"])
def test_a_metric_is_what_its_root_and_product_say(kind: str) -> None:
    x = rows()
    full = x.mT @ x / 400
    moment = {
        "full": full,
        "diagonal": full[0].diagonal(),
        "sketched": SketchedMoment.of(x, 8) / 400,
    }[kind]
    metric, eye = metric_of(moment, 1e-3), torch.eye(60, dtype=torch.float64).unsqueeze(0)
    root = metric.whiten(eye)
    torch.testing.assert_close(root @ root.mT, metric.times(eye))
    torch.testing.assert_close(metric.unwhiten(metric.whiten(eye)), eye)


def test_half_of_the_directions_cost_little_where_the_spectrum_falls() -> None:
    """A low-rank fit in the sketched metric, judged in the exact one."""
    x, layer = rows(), nn.Linear(60, 40, bias=False, dtype=torch.float64)
    m, exact = linear_map(layer), Stats(x.mT @ x / 400, None, None, 400, ((400, 60),))
    errors = {}
    for rank in (None, 4, 15, 30):
        moment = exact.moment if rank is None else SketchedMoment.of(x, rank) / 400
        method, found = LowRank(), Objective(m, Stats(moment, None, None, 400, exact.shapes))
        made = method.build(m, 10, 0)
        method.fit_(made, found)
        errors[rank] = Objective(m, exact).error(m.matrix() - method.weight(made, m))
    assert errors[None] <= errors[30] <= 1.1 * errors[None]
    assert errors[15] < errors[4]


def test_layers_too_wide_for_a_moment_are_compressed_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (moments, stats, method_module, refit):
        monkeypatch.setattr(module, "WIDE", 40)
    monkeypatch.setattr(SketchedMoment.of.__func__, "__defaults__", (16,))
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48)).eval()
    x = rows(300, 32)[0].float()
    found = bz.collect(model, [x])
    assert isinstance(found["0"].gradient, SketchedMoment)
    assert isinstance(found["2"].moment, SketchedMoment)
    small, plan = bz.compress(model, 0.5, [x], methods=["lowrank", "sketched"])
    assert {choice.method for choice in plan.choices.values()} == {"lowrank"}
    with torch.no_grad():
        error = (small(x) - model(x)).norm() / model(x).norm()
    assert error < 0.25


def test_a_method_that_needs_the_whole_moment_is_told() -> None:
    x = rows()
    m = linear_map(nn.Linear(60, 40, bias=False, dtype=torch.float64))
    found = Objective(m, Stats(SketchedMoment.of(x, 8), None, None, 400, ()))
    with pytest.raises(ValueError, match="a whole moment is kept up to a width of"):
        _ = found.moment


def test_a_mean_far_beyond_the_spread_costs_no_precision() -> None:
    x = (rows(600, 20)[0] + 1e3).float().unsqueeze(0)
    products = Products()
    for part in x.split(100, dim=1):
        products.add(part, part)
    moment, mean, _ = products.means()
    exact = x[0].double()
    centred = moment[0] - mean[0].outer(mean[0])
    torch.testing.assert_close(centred, exact.T.cov(correction=0), rtol=1e-4, atol=1e-6)


def test_products_of_two_streams_are_means_over_all_rows() -> None:
    x, y, products = rows(500, 7), rows(500, 7, decay=0.3), Products()
    for a, b in zip(x.split(90, dim=1), y.split(90, dim=1), strict=True):
        products.add(a, b)
    cross, mean_x, mean_y = products.means()
    torch.testing.assert_close(cross, x.mT @ y / 500)
    torch.testing.assert_close((mean_x, mean_y), (x.mean(1), y.mean(1)))


def test_damping_is_a_share_of_the_mean_eigenvalue_without_outliers() -> None:
    x = torch.randn(2, 99, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    x[0, :, 3] *= 50  # large, and no outlier: 2,500 times the median variance
    c = x.mT @ x / 99
    mean = torch.linalg.eigvalsh(c).mean(-1)[:, None, None]
    shift = 0.01 * mean * torch.eye(20, dtype=torch.float64)
    torch.testing.assert_close(damped(c, 0.01), c + shift)


def test_damping_of_the_others_does_not_grow_with_an_outlier() -> None:
    c = torch.eye(20, dtype=torch.float64).repeat(1, 1, 1)
    c[0, 3, 3], c[0, 4:14] = 1e12, 0  # most of the rest is silent
    shift = (damped(c, 0.01) - c).diagonal(dim1=-2, dim2=-1)[0]
    want = torch.tensor(0.01 * (9 + OUTLIER) / 20, dtype=torch.float64)
    torch.testing.assert_close(shift[0], want)


def test_a_moment_of_nothing_is_damped_to_something() -> None:
    torch.linalg.cholesky(damped(torch.zeros(1, 5, 5, dtype=torch.float64), 1e-3))


def test_constant_channels_with_a_grain_of_rounding_do_not_lower_the_damping() -> None:
    plain = torch.tensor([1.0, 2.0, *[0.0] * 4], dtype=torch.float64)
    grain = torch.tensor([1.0, 2.0, *[1e-27] * 4], dtype=torch.float64)
    found = [damped(torch.diag(d)[None], 1e-3).diagonal(dim1=-2, dim2=-1) for d in (plain, grain)]
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("seed", range(8))
def test_few_rows_in_single_precision_of_mixed_scales_have_a_metric(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scales = 10 ** (-4.5 * torch.linspace(0, 1, 96).round())  # half of them far below the others
    x = (torch.randn(1, 20, 96, generator=generator) * scales).float()
    products = Products()
    products.add(x, x)
    moment, _, _ = products.means()
    assert metric_of(moment, 1e-3).whiten(torch.eye(96).double()).isfinite().all()
