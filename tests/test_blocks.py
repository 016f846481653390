"""Cores between isometries: what the isometry is, and why every term is sketched on both sides."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import bozzetto as bz
from bozzetto.linalg import random_signs
from bozzetto.maps import linear_map
from bozzetto.methods import Blocks, Objective, make_method
from bozzetto.nn.blocks import Blocked, BlockLinear, Isometry, factors
from bozzetto.sketch import make_sketch

SHAPES = pytest.mark.parametrize(
    ("n", "blocks"), [(12, 1), (12, 4), (13, 4), (7, 7), (30, 9), (50, 12), (34, 17)]
)


@SHAPES
def test_an_isometry_keeps_inner_products_exactly(n: int, blocks: int) -> None:
    u = Isometry(n, blocks, seed=3).double().dense()
    torch.testing.assert_close(u.T @ u, torch.eye(n).double(), rtol=0, atol=1e-6)
    if n % blocks == 0:
        torch.testing.assert_close(u @ u.T, torch.eye(n).double(), rtol=0, atol=1e-6)


@SHAPES
@pytest.mark.parametrize("dim", [-1, -2, 0])
def test_down_and_up_are_the_dense_matrix_and_its_transpose(n: int, blocks: int, dim: int) -> None:
    sketch = Isometry(n, blocks, seed=5)
    u, x, y = sketch.dense(), torch.randn(n, 3, 2), torch.randn(sketch.k, 3, 2)
    down = sketch.down(x.movedim(0, dim), dim).movedim(dim, 0)
    up = sketch.up(y.movedim(0, dim), dim).movedim(dim, 0)
    torch.testing.assert_close(down, torch.einsum("kn,nab->kab", u, x))
    torch.testing.assert_close(up, torch.einsum("kn,kab->nab", u, y))


@pytest.mark.parametrize("blocks", range(1, 65))
def test_two_small_matrices_mix_as_many_blocks(blocks: int) -> None:
    a, b = factors(blocks)
    assert a * b == blocks


def test_axes_of_another_length_are_refused() -> None:
    sketch = Isometry(12, 4)
    for apply in (sketch.down, sketch.up):
        with pytest.raises(ValueError, match="must have length 12; got shape"):
            apply(torch.zeros(2, 1))
    with pytest.raises(ValueError, match="a sketch needs 1 <= k <= n; got k=13 for n=12"):
        Isometry(12, 13)
    with pytest.raises(ValueError, match="4 blocks need widths that they divide; got 10, 8"):
        BlockLinear(10, 8, 4)


def kernel(u: torch.Tensor, v: torch.Tensor, pair: list[torch.Tensor]) -> torch.Tensor:
    """l Σ_t ⟨U_t x, U_t x'⟩⟨V_t g, V_t g'⟩: the tangent kernel of the cores."""
    x, other, g, slope = pair
    left = ((u @ x) * (u @ other)).sum(-1)
    return len(u) * (left * ((v @ g) * (v @ slope)).sum(-1)).sum()


@pytest.mark.parametrize("blocks", [2, 3, 4, 8])
def test_the_fresh_kernel_varies_an_mth_of_a_one_sided_sketch(blocks: int) -> None:
    """Of sign vectors: (l − 1)/(mn), of one fold of n/l rows (l − 1)/n; five standard errors."""
    n, m, found = 48, 24, {"each": [], "in": []}
    for seed in range(600):
        pair = [random_signs(97 * seed + i, w).float() for i, w in enumerate((n, n, m, m))]
        exact = (pair[0] @ pair[1]) * (pair[2] @ pair[3])
        u = Isometry(n, blocks, 2 * seed).dense().unflatten(0, (blocks, -1))
        v = Isometry(m, blocks, 2 * seed + 1).dense().unflatten(0, (blocks, -1))
        found["each"].append((kernel(u, v, pair) - exact) / (n * m))
        fold = make_sketch("fold", n, n // blocks, seed).dense()[None]
        found["in"].append((kernel(fold, torch.eye(m)[None], pair) - exact) / (n * m))
    for side, theory in (("each", (blocks - 1) / (n * m)), ("in", (blocks - 1) / n)):
        gaps = torch.stack(found[side])
        squares = gaps.square() * (1 if side == "each" else m)  # ⟨g, g'⟩² is m on average
        assert gaps.mean().abs() < 5 * gaps.std() / len(gaps) ** 0.5
        assert (squares.mean() - theory).abs() < 5 * squares.std() / len(gaps) ** 0.5


def test_a_quarter_of_the_values_has_full_rank() -> None:
    m = linear_map(nn.Linear(32, 64))
    method = Blocks()
    layer = method.build(m, 8, seed=1)
    assert sum(p.numel() for p in layer.parameters()) == 32 * 64 // 4 + 64
    assert torch.linalg.matrix_rank(method.weight(layer, m)[0]) == 32


def test_the_fit_without_data_is_the_projection() -> None:
    dense = nn.Linear(24, 36, bias=False)
    m, method = linear_map(dense), Blocks()
    layer = method.build(m, 8, seed=1)
    method.fit_(layer, Objective(m))
    fitted = method.weight(layer, m)[0]
    left = m.weight.detach().double() - fitted
    assert abs(float((left * fitted).sum())) < 1e-6 * float(left.square().sum())
    share = float(fitted.square().sum() / m.weight.detach().double().square().sum())
    assert share == pytest.approx(1 / 3, abs=5 * (2 / (24 * 36)) ** 0.5)


@pytest.mark.parametrize(("n", "rows"), [(64, 64), (32, 48), (60, 17)])
def test_sizes_that_save_no_work_are_not_taken_where_work_is_bounded(n: int, rows: int) -> None:
    """Also where two numbers of blocks have as many rows, as 11 and 12 of 32 channels."""
    m = linear_map(nn.Linear(n, rows))
    every, quick = Blocks().every_size(m), Blocks().every_size(m, quick=True)
    assert set(quick) < set(every)
    x, before = torch.zeros(1, n), n * rows
    for size in reversed(quick):
        layer = Blocks().build(m, size, seed=0).eval()
        with FlopCounterMode(display=False) as counter:
            layer(x)
        assert counter.get_total_flops() < 2 * before
        before = counter.get_total_flops() / 2


def test_blocks_train_and_go_through_the_compiler_and_the_exporter() -> None:
    model = nn.Sequential(nn.Conv2d(6, 20, 3), nn.ReLU(), nn.Flatten(), nn.Linear(720, 24))
    small, plan = bz.sketch(model, 0.3)
    assert {choice.method for choice in plan.choices.values()} == {"blocks"}
    x = torch.randn(5, 6, 8, 8)
    y = small(x)
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in small.parameters())
    exported = torch.export.export(small, (x,)).module()
    torch.testing.assert_close(exported(x), y)
    torch.testing.assert_close(torch.vmap(small)(x[:, None]), small(x)[:, None])


SHAPED = {
    "linear": (nn.Linear(24, 36), (5, 2, 24)),
    "padded linear": (nn.Linear(26, 35, bias=False), (26,)),
    "wide linear": (nn.Linear(150, 160), (3, 150)),
    "conv": (nn.Conv2d(10, 12, 3, stride=2, padding=1), (2, 10, 7, 7)),
    "reflecting conv": (nn.Conv1d(8, 12, 3, padding=2, padding_mode="reflect"), (2, 8, 9)),
    "grouped conv": (nn.Conv2d(12, 16, 3, groups=2, dilation=2, padding="same"), (2, 12, 7, 7)),
    "transposed conv": (nn.ConvTranspose2d(8, 12, 3, stride=2), (2, 8, 5, 5)),
}


def term(layer: nn.Module) -> Blocked:
    return next(m for m in layer.modules() if isinstance(m, Blocked))


@pytest.mark.parametrize("name", SHAPED)
def test_quick_ways_are_the_parts_one_after_the_other(name: str) -> None:
    dense, shape = SHAPED[name]
    m = linear_map(dense)
    layer = Blocks().build(m, Blocks().every_size(m)[-2], seed=2).double()
    blocked = term(layer)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    (core,), found = blocked.parameters(), {}
    for training in (True, False):
        y = blocked.train(training)(x)
        found[training] = y, *torch.autograd.grad(y.sin().sum(), (x, core))
    y = nn.Sequential.forward(blocked, x)
    slow = y, *torch.autograd.grad(y.sin().sum(), (x, core))
    for way in found.values():
        torch.testing.assert_close(way, slow, rtol=1e-5, atol=1e-6)


def test_the_weight_of_a_layer_is_what_it_applies() -> None:
    m = linear_map(nn.Conv2d(10, 12, 3, groups=2))
    layer = Blocks().build(m, 2, seed=1)
    found = term(layer).weight().reshape(2, 6, -1).double()
    torch.testing.assert_close(found, Blocks().weight(layer, m), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("index", [-1, 40])
def test_an_index_outside_the_vocabulary_is_refused(index: int) -> None:
    layer = Blocks().build(linear_map(nn.Embedding(40, 12)), 10, seed=1)
    with pytest.raises(IndexError):
        layer(torch.tensor([0, index]))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_core_that_is_watched_or_replaced_is_called(kind: str, training: bool) -> None:
    dense, x = nn.Linear(24, 20), torch.randn(5, 24)
    if kind == "convolution":
        dense, x = nn.Conv1d(24, 20, 3, padding=1), torch.randn(5, 24, 7)
    m = linear_map(dense)
    layer: Any = make_method("blocks").build(m, 6, 3).train(training)
    y, parts, seen = layer(x), layer.terms[0], []
    handle = parts[1].register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(layer(x), y)
    assert seen == [1]
    handle.remove()
    parts[1] = nn.Sequential(parts[1], nn.Threshold(torch.inf, 0.0))
    bias = layer.bias.view(-1, *[1] * (x.ndim - 2)).expand_as(y)
    torch.testing.assert_close(layer(x), bias)
