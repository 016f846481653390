"""Sketched layers and methods against the dense map that they say they apply."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import bozzetto as bz
from bozzetto.maps import LinearMap, linear_map
from bozzetto.methods import Objective, make_method
from bozzetto.sketch import FAMILIES, Fold
from bozzetto.stats import Stats

DOUBLE: dict[str, Any] = {"dtype": torch.float64}


def layers() -> dict[str, tuple[nn.Module, Tensor]]:
    x2 = torch.randn(3, 8, 9, 9, **DOUBLE)
    return {
        "linear": (nn.Linear(12, 20, **DOUBLE), torch.randn(5, 4, 12, **DOUBLE)),
        "grouped": (
            nn.Conv2d(8, 12, (3, 2), stride=2, padding=1, dilation=2, groups=2, **DOUBLE), x2,
        ),
        "circular": (nn.Conv2d(8, 12, 3, padding="same", padding_mode="circular", **DOUBLE), x2),
        "reflect": (nn.Conv2d(8, 12, 3, 1, 2, padding_mode="reflect", bias=False, **DOUBLE), x2),
        "unbatched": (nn.Conv1d(8, 12, 5, padding="same", **DOUBLE), torch.randn(8, 9, **DOUBLE)),
        "volume": (nn.Conv3d(4, 6, 2, **DOUBLE), torch.randn(2, 4, 4, 4, 4, **DOUBLE)),
        "transposed": (
            nn.ConvTranspose2d(8, 12, 3, stride=2, padding=1, output_padding=1, groups=2, **DOUBLE),
            torch.randn(3, 8, 5, 5, **DOUBLE),
        ),
        "dilated transposed": (
            nn.ConvTranspose1d(8, 12, 4, stride=3, padding=2, dilation=2, **DOUBLE),
            torch.randn(3, 8, 5, **DOUBLE),
        ),
    }  # fmt: skip


LAYERS = list(layers())
SKETCHED = {nn.Linear: bz.nn.SketchLinear} | {
    getattr(nn, name): getattr(bz.nn, f"Sketch{name}")
    for name in ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d")
}


def statistics(m: LinearMap, x: Tensor) -> Stats:
    rows = m.op.patches(x)
    gradient = torch.randn(m.op.groups, 40, m.block[0], **DOUBLE)
    count = rows.shape[1]
    return Stats(rows.mT @ rows / count, rows.mean(1), gradient.mT @ gradient / 40, count, ())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sides", ["both", "in", "out"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_sketched_layer_applies_the_weight_it_says(name: str, sides: Any, family: str) -> None:
    layer, x = layers()[name]
    sketched = SKETCHED[type(layer)].from_dense(layer, 1, sides=sides, family=family)
    dense = LinearMap(sketched.weight(), sketched.bias, linear_map(layer).op).module()
    assert_close(sketched(x), dense(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["grouped", "circular", "unbatched", "volume"])
def test_the_joint_form_applies_the_weight_it_says(name: str) -> None:
    layer, x = layers()[name]
    sketched = SKETCHED[type(layer)].from_dense(layer, 1, form="joint", family="sign")
    dense = LinearMap(sketched.weight(), sketched.bias, linear_map(layer).op).module()
    assert_close(sketched(x), dense(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("sides", ["both", "in", "out"])
@pytest.mark.parametrize("terms", [1, 2])
def test_from_dense_is_the_least_squares_optimum(sides: Any, terms: int) -> None:
    layer, x = nn.Linear(24, 20, **DOUBLE), torch.randn(200, 24, **DOUBLE)
    moment = x.T @ x / len(x)
    fitted = bz.nn.SketchLinear.from_dense(layer, 2, moment=moment, sides=sides, terms=terms)
    rest = (layer.weight - fitted.weight()) @ moment
    for core, u, on_input in fitted.bases():
        slope = rest @ u.T if on_input else u @ rest
        assert slope.abs().max() < 1e-9 * rest.norm(), core


@pytest.mark.parametrize("family", FAMILIES)
def test_a_ten_layer_network_keeps_its_scale(family: str) -> None:
    x = torch.randn(256, 256)

    def spread(make: Any) -> float:
        y = x
        for i in range(10):
            y = make(i)(y).detach() * 3**0.5  # undoes the dense layer's own shrinking
        return y.std().item()

    dense = spread(lambda _: nn.Linear(256, 256, bias=False))
    kind = bz.nn.SketchLinear
    sketched = spread(lambda i: kind(256, 256, 32, bias=False, family=family, seed=i))
    assert 0.4 < sketched / dense < 2.5


@pytest.mark.parametrize("k", [0, -1, 60, 200])
def test_a_sketch_that_would_not_shrink_the_layer_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=r"needs 1 <= k <= 49 .*got k="):
        bz.nn.SketchLinear(100, 100, k)


def test_the_repr_says_sizes() -> None:
    text = repr(bz.nn.SketchLinear(100, 50, 5, seed=7))
    for part in ("100 -> 50", "k=5", "seed=7", "Fold(n=50, k=5", "Linear(in_features=100"):
        assert part in text


def test_checkpoints_hold_trained_values_only() -> None:
    layer = bz.nn.SketchLinear(512, 512, 32)
    assert sum(v.numel() for v in layer.state_dict().values()) == 32 * 1024 + 512


def test_an_embedding_looks_up_the_weight_it_says() -> None:
    table, index = nn.Embedding(40, 8, padding_idx=3), torch.randint(0, 40, (4, 6))
    for sides in ("out", "in", "both"):
        made = bz.nn.SketchEmbedding.from_dense(table, 3, sides=sides, moment=torch.rand(40))
        want = made.weight().T[index].float()
        known = index != 3
        assert_close(made(index)[known], want[known])


def test_low_rank_beats_every_other_factorisation_of_its_rank() -> None:
    layer, x = layers()["circular"]
    m = linear_map(layer)
    objective, method = Objective(m, statistics(m, x)), make_method("lowrank")
    (best,) = method.errors(objective, [3])
    gains = []
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        small = method.build(m, 3, 0)
        method.fit_(small, objective)
        with torch.no_grad():
            for p in small.parameters():
                p += 1e-3 * torch.randn(p.shape, generator=draw, **DOUBLE)
        gains.append(objective.error(objective.w - method.weight(small, m)) - best)
    assert min(gains) > 0


@pytest.mark.parametrize("sides", ["out", "in", "both"])
def test_the_row_of_an_embeddings_padding_is_counted_from_either_end(sides: Any) -> None:
    made = [bz.nn.SketchEmbedding(40, 8, 3, padding_idx=i, sides=sides) for i in (-2, 38)]
    assert_close(made[0](torch.tensor(38)), torch.zeros(8))
    assert [m.weight()[:, 38].abs().max().item() for m in made] == [0, 0]
    with pytest.raises(ValueError, match=r"padding_idx lies in -40 … 39; got 40"):
        bz.nn.SketchEmbedding(40, 8, 3, padding_idx=40, sides=sides)


@pytest.mark.parametrize("sides", ["out", "in", "both"])
def test_an_embeddings_weight_says_what_its_padding_gives(sides: Any) -> None:
    table = nn.Embedding(40, 8, padding_idx=3)
    with torch.no_grad():
        table.weight[3] = 1.0  # as the head it is tied to may train it
    made = bz.nn.SketchEmbedding.from_dense(table, 3, sides=sides)
    assert_close(made(torch.arange(40)), made.weight().T.float())


def test_the_diagonal_of_a_moment_is_a_moment_with_a_mean_too() -> None:
    layer, x = nn.Linear(24, 20, **DOUBLE), 2 + torch.rand(200, 24, **DOUBLE)
    diagonal, mean = x.square().mean(0), x.mean(0)
    known = [
        bz.nn.SketchLinear.from_dense(layer, 2, moment=moment, mean=mean)
        for moment in (diagonal, diagonal.diag())
    ]
    assert_close(known[0].weight(), known[1].weight())
    assert_close(known[0].bias, known[1].bias)


@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        (bz.nn.SketchLinear, nn.Conv1d(20, 20, 1)),
        (bz.nn.SketchConv1d, nn.Conv2d(20, 20, 1)),
        (bz.nn.SketchEmbedding, nn.Linear(20, 20)),
    ],
)
def test_a_layer_of_another_kind_is_refused(kind: Any, layer: nn.Module) -> None:
    with pytest.raises(TypeError, match=rf"^{kind.__name__} is made from nn\..*; got "):
        kind.from_dense(layer, 2)


def test_an_embedding_that_renormalises_its_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="max_norm"):
        bz.nn.SketchEmbedding.from_dense(nn.Embedding(40, 8, max_norm=1.0), 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: bz.nn.Down(Fold(2, 1), dim=1, groups=2),
        lambda: bz.nn.Up(Fold(2, 1), dim=0),
        lambda: bz.nn.Sum(nn.Identity(), bias=torch.zeros(4), dim=1),
    ],
)
def test_an_axis_is_counted_from_the_end(make: Any) -> None:
    with pytest.raises(ValueError, match=r"counted from the end, dim < 0; got [01]"):
        make()


@pytest.mark.parametrize("family", [*FAMILIES, "isometry", "joint"])
def test_a_layer_made_without_memory_draws_its_sketches_when_it_gets_some(family: str) -> None:
    def made() -> nn.Module:
        if family == "isometry":
            m = linear_map(nn.Linear(24, 20))
            return make_method("blocks").build(m, 6, 3)
        form: Any = {"family": "sign", "form": "joint"} if family == "joint" else {"family": family}
        return bz.nn.SketchConv1d(24, 20, 3, 3, terms=2, seed=3, **form)

    known = made()
    with torch.device("meta"):
        empty = made()
    assert all(t.is_meta for t in [*empty.parameters(), *empty.buffers()])
    empty.to_empty(device="cpu").load_state_dict(known.state_dict())
    x = torch.randn(5, 24) if family == "isometry" else torch.randn(5, 24, 7)
    assert_close(empty(x), known(x), rtol=0, atol=0)
