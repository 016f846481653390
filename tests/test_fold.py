"""Folding, unfolding and the networks made for evaluation against their slow twins."""

import copy
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.testing import assert_close

import bozzetto as bz
from bozzetto import fold as module
from bozzetto.fold import fold, unfold
from bozzetto.linalg import random_normal, random_signs
from bozzetto.nn import Folded, Stack, for_inference, inference
from bozzetto.prices import count_flops
from bozzetto.sketch import FAMILIES, Fold, Sketch, make_sketch
from networks import NETWORKS

DOUBLE: dict[str, Any] = {"dtype": torch.float64}
SIZES = [(12, 4, -1), (13, 4, -1), (11, 11, -1), (12, 1, 1), (14, 4, -3), (7, 5, 0)]
every_size = pytest.mark.parametrize(("n", "k", "dim"), SIZES)
paths = pytest.mark.parametrize("path", ["blocks", "whole"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return random_normal(seed, torch.Size(shape).numel()).view(shape)


def along(n: int, dim: int, seed: int = 0) -> Tensor:
    """A batch with n values along an axis."""
    return normal(2, 1, 3, n, seed=seed).movedim(-1, dim)


@pytest.fixture
def forced(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the two ways through, whatever the size."""
    quick = path == "blocks"
    monkeypatch.setattr(module, "_PASS", 0 if quick else 1 << 60)
    monkeypatch.setattr(module, "_GRADIENT", 0 if quick else 1 << 60)


@paths
@every_size
@pytest.mark.usefixtures("forced")
def test_a_fold_is_the_dense_product_and_unfolding_its_adjoint(n: int, k: int, dim: int) -> None:
    signs = random_signs(1, n).double()
    u = torch.zeros(k, n, **DOUBLE)
    u[torch.arange(n) % k, torch.arange(n)] = signs
    x, y, base = along(n, dim), along(k, dim, seed=1), along(n, dim, seed=2)
    assert_close(fold(x, signs, k, dim), (x.movedim(dim, -1) @ u.T).movedim(-1, dim))
    up = (y.movedim(dim, -1) @ u).movedim(-1, dim)
    assert_close(unfold(y, signs, dim), up)
    assert_close(unfold(y, signs, dim, base), up + base)
    bias = normal(n, seed=3).view(-1, *[1] * (x.ndim - 1 - dim % x.ndim))
    assert_close(unfold(y, signs, dim, bias), up + bias)


@paths
@pytest.mark.usefixtures("forced")
def test_channels_that_lie_together_stay_together() -> None:
    signs, last = random_signs(1, 14).double(), torch.channels_last
    x, y = normal(2, 14, 3, 3), normal(2, 4, 3, 3, seed=1)
    bias = normal(14).view(-1, 1, 1)
    for got, want in (
        (fold(x.contiguous(memory_format=last), signs, 4, 1), fold(x.contiguous(), signs, 4, 1)),
        (unfold(y.contiguous(memory_format=last), signs, 1, bias), unfold(y, signs, 1, bias)),
    ):
        assert_close(got, want)
        assert got.is_contiguous(memory_format=last)


@every_size
@pytest.mark.parametrize("path", ["blocks"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own
@pytest.mark.usefixtures("forced")
def test_the_written_gradients_are_the_true_ones(n: int, k: int, dim: int) -> None:
    signs = random_signs(1, n).double()
    x, y = along(n, dim).requires_grad_(), along(k, dim, seed=1).requires_grad_()
    bias = normal(n, seed=3).view(-1, *[1] * (x.ndim - 1 - dim % x.ndim)).requires_grad_()
    check = partial(gradcheck, check_forward_ad=True, check_batched_grad=True)
    assert check(lambda a: fold(a, signs, k, dim), (x,))
    assert check(lambda a: unfold(a, signs, dim), (y,))
    assert check(lambda a, b: unfold(a, signs, dim, b), (y, bias))
    assert gradgradcheck(lambda a: fold(a, signs, k, dim) ** 2, (x,))
    assert gradgradcheck(lambda a, b: unfold(a, signs, dim, b) ** 2, (y, bias))


@pytest.mark.parametrize("path", ["blocks"])
@pytest.mark.usefixtures("forced")
def test_nothing_wide_is_kept_for_the_gradient() -> None:
    layer, x = bz.nn.SketchLinear(64, 64, 8, sides="in"), torch.randn(50, 64)
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x.requires_grad_()).sum().backward()
    assert sorted(t.numel() for t in kept if t.ndim > 1 and 50 in t.shape) == [50 * 8]


@pytest.mark.parametrize("family", FAMILIES)
def test_stacked_sketches_are_one_sketch_of_all_their_rows(family: str) -> None:
    stack = Stack([make_sketch(family, 12, k, seed=k) for k in (2, 3)]).double()
    u, x, y, base = stack.dense(), along(12, 1), along(5, 1, seed=1), along(12, 1, seed=2)
    assert_close(
        u.float(), 2**-0.5 * torch.cat([cast(Sketch, p).dense().float() for p in stack.parts])
    )
    assert_close(stack.down(x, 1), torch.einsum("kn,anbc->akbc", u, x))
    assert_close(stack.up(y, 1), torch.einsum("kn,akbc->anbc", u, y))
    assert_close(stack.up_onto(base, y, 1), base + stack.up(y, 1))
    index = torch.tensor([[3, 0], [11, 3]])
    assert_close(stack.lookup(normal(5, 4), index), (u.T @ normal(5, 4))[index])


def test_the_variance_of_a_stack_is_that_of_its_draws() -> None:
    gaps = []
    for seed in range(600):
        u = Stack([make_sketch("fold", 12, 3, seed=2 * seed + i) for i in (0, 1)]).dense().double()
        gaps.append((u.T @ u - torch.eye(12)).square().sum() / 12)
    gap = torch.stack(gaps)
    expected = Stack([Fold(12, 3, 0), Fold(12, 3, 1)]).variance()
    assert abs(gap.mean() - expected) < 5 * gap.std() / len(gap) ** 0.5


LAYERS = {
    "linear": (lambda **o: bz.nn.SketchLinear(24, 20, 3, **o), (5, 7, 24)),
    "convolution": (lambda **o: bz.nn.SketchConv2d(24, 20, 3, 3, padding=1, **o), (2, 24, 6, 6)),
    "transposed": (lambda **o: bz.nn.SketchConvTranspose1d(24, 20, 3, 3, **o), (2, 24, 6)),
}


@pytest.mark.parametrize("sides", ["in", "out", "both"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_folded_layer_gives_what_the_sketched_one_gives(
    name: str, bias: bool, sides: str
) -> None:
    build, shape = LAYERS[name]
    layer, x = build(sides=sides, bias=bias), normal(*shape).float()
    folded = Folded(copy.deepcopy(layer))
    assert_close(folded(x), layer(x), atol=1e-5, rtol=1e-5)
    channels = [20] + [1] * (len(shape) - 2) * (name != "linear")
    scale, shift = normal(20, seed=1).float(), normal(20, seed=2).float()
    folded.absorb_(scale, shift)
    expected = layer(x) * scale.view(channels) + shift.view(channels)
    assert_close(folded(x), expected, atol=1e-5, rtol=1e-5)


def hooked(core: Any) -> None:
    core.register_forward_hook(lambda *_: None)


def covered(core: Any) -> None:
    core.forward = core.forward


def replaced(core: Any) -> None:
    class Other(type(core)):
        pass

    core.__class__ = Other


@pytest.mark.parametrize("sides", ["in", "out", "both"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_sketched_layer_takes_what_its_cores_take(name: str, sides: str) -> None:
    build, shape = LAYERS[name]
    layer, x = build(sides=sides), normal(*shape).float()
    narrow = x.narrow(layer.dim, 0, layer.k)
    cores = [partial(b.core, narrow if b.on_input else x) for b in layer.bases()]
    assert count_flops(partial(layer, x)) == sum(map(count_flops, cores))


@pytest.mark.parametrize("sides", ["in", "both"])
@pytest.mark.parametrize("how", [hooked, covered, replaced])
@pytest.mark.parametrize("name", LAYERS)
def test_a_bias_within_the_product_is_the_bias_added_where_a_core_must_be_called(
    name: str, how: Any, sides: str
) -> None:
    build, shape = LAYERS[name]
    layer, x = build(sides=sides), normal(*shape).float()
    term: Any = layer.terms[-1]
    assert term.fuses(x, layer.bias) == (name != "transposed")
    y = layer(x)
    how(term[1])
    assert not term.fuses(x, layer.bias)
    assert_close(layer(x), y)


@pytest.mark.parametrize(
    "layer",
    [
        bz.nn.SketchConv2d(8, 8, 3, 1, groups=2),
        bz.nn.SketchLinear(24, 20, 2, terms=2),
        bz.nn.SketchLinear(24, 20, 2, family="count"),
        bz.nn.SketchEmbedding(24, 20, 2),
        bz.nn.SketchConv1d(24, 20, 3, 2, form="joint"),
    ],
)
def test_what_cannot_be_folded_is_left_alone(layer: Any) -> None:
    assert not Folded.takes(layer)
    with pytest.raises(TypeError, match="Folded needs"):
        Folded(layer)


def normed() -> nn.Sequential:
    """Batch norms with statistics of their own behind layers of all kinds."""
    made = nn.Sequential(
        nn.Conv2d(6, 8, 3, groups=2), nn.BatchNorm2d(8), nn.ReLU(),
        bz.nn.SketchConv2d(8, 12, 3, 2), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Sequential(nn.Conv2d(12, 3, 1, bias=False), nn.Conv2d(3, 10, 1)), nn.BatchNorm2d(10),
        nn.ConvTranspose2d(10, 8, 2, stride=2, groups=2), nn.BatchNorm2d(8, affine=False),
        nn.Flatten(), nn.Linear(8 * 8 * 8, 16), nn.BatchNorm1d(16),
    )  # fmt: skip
    norms: list[Any] = [m for m in made.modules() if hasattr(m, "running_var")]
    for seed, norm in enumerate(norms):
        norm.running_mean = normal(len(norm.running_mean), seed=seed).float()
        norm.running_var = normal(len(norm.running_var), seed=seed + 9).float().exp()
    return made.eval()


def test_every_batch_norm_goes_into_the_layer_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "_faster", lambda runs, x: next(iter(runs)))
    model, x = normed(), normal(3, 6, 8, 8).float()
    quick = for_inference(model, x)
    assert not [m for m in quick.modules() if "BatchNorm" in type(m).__name__]
    assert len([m for m in quick.modules() if isinstance(m, Folded)]) == 1
    assert_close(quick(x), model(x), atol=1e-4, rtol=1e-4)
    assert not [p for p in quick.parameters() if p.requires_grad]


class Twice(nn.Module):
    """The layer's output is read by more than its batch norm, or the layer runs twice."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.norm, self.how = nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4), how
        self.norm.running_var = torch.tensor([0.5, 2.0, 3.0, 4.0])
        if how == "tied":
            self.other = nn.Conv1d(4, 4, 1)
            self.other.weight = self.conv.weight

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        if self.how == "returned":
            return self.norm(y), y
        if self.how == "residual":
            return self.norm(y) + y
        if self.how == "tied":
            return self.norm(y) + self.other(x)
        return self.norm(y) + self.conv(x + 1)


@pytest.mark.parametrize("how", ["returned", "residual", "called twice", "tied"])
def test_a_batch_norm_stays_where_others_read_the_layer(how: str) -> None:
    model, x = Twice(how).eval(), normal(2, 4, 5).float()
    quick = for_inference(model, x)
    assert isinstance(quick.norm, nn.BatchNorm1d)
    assert_close(quick(x), model(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_gives_the_same_outputs_for_inference_and_is_left_as_it_was(
    name: str,
) -> None:
    model, x = NETWORKS[name]()
    before = copy.deepcopy(model.state_dict())
    flags = [m.training for m in model.modules()]
    quick = for_inference(model, x)
    assert flags == [m.training for m in model.modules()]
    assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    with torch.no_grad():
        assert_close(quick(x), copy.deepcopy(model).eval()(x), atol=1e-4, rtol=1e-3)


def test_a_network_that_reads_its_own_weights_is_refused() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)
            self.norm.running_var = torch.tensor([0.5, 2.0, 3.0, 4.0])

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) * self.conv.weight.sum()

    with pytest.raises(ValueError, match="other outputs"):
        for_inference(Reader().eval(), normal(2, 4, 5).float())


def test_a_compiled_sketched_layer_gives_the_same_with_its_gradient() -> None:
    torch.compiler.reset()
    layer, x = bz.nn.SketchLinear(24, 20, 2, terms=2), normal(5, 24).float().requires_grad_()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y, expected = compiled(x), layer(x)
    assert_close(y, expected)
    ones = torch.ones_like(y)
    assert_close(torch.autograd.grad(y, x, ones), torch.autograd.grad(expected, x, ones))


def test_biases_may_be_batched_alone() -> None:
    signs, y, biases = random_signs(1, 12).double(), normal(4, 3, 3), normal(5, 12)
    got = torch.vmap(lambda b: unfold(y, signs, 0, b.view(-1, 1, 1)))(biases)
    assert_close(got, torch.stack([unfold(y, signs, 0, b.view(-1, 1, 1)) for b in biases]))


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own
def test_forward_differentiation_of_a_layer_is_its_linear_part() -> None:
    layer, x, t = bz.nn.SketchLinear(24, 20, 2).double(), normal(5, 24), normal(5, 24, seed=1)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, t))).tangent
    assert_close(tangent, t @ layer.weight().T)


@pytest.mark.parametrize("sides", ["in", "out", "both"])
def test_folding_leaves_the_layer_as_it_was(sides: Any) -> None:
    layer, x = bz.nn.SketchLinear(24, 20, 3, sides=sides), normal(5, 24).float()
    y = layer(x)
    Folded(layer).absorb_(normal(20).float(), normal(20, seed=1).float())
    assert_close(layer(x), y, rtol=0, atol=0)


class Masked(nn.Module):
    """Some outputs are infinite; a folded one notices that its weights are others."""

    def __init__(self, change: float) -> None:
        super().__init__()
        self.conv, self.norm, self.change = nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4), change
        self.norm.running_var = torch.tensor([0.5, 2.0, 3.0, 4.0])
        self.sum = float(self.conv.weight.detach().sum())

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        same = float(self.conv.weight.detach().sum()) == self.sum
        hidden = torch.full_like(y, -torch.inf)
        return torch.cat([hidden, y if same else y + self.change])


@pytest.mark.parametrize("change", [torch.nan, torch.inf, 1.0])
def test_outputs_that_are_not_finite_hide_no_difference(change: float) -> None:
    with pytest.raises(ValueError, match="other outputs"):
        for_inference(Masked(change).eval(), normal(2, 4, 5).float())


def test_infinite_outputs_may_agree() -> None:
    model, x = Masked(0.0).eval(), normal(2, 4, 5).float()
    assert_close(for_inference(model, x)(x), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own
@pytest.mark.usefixtures("forced")
@paths
def test_forward_differentiation_by_one_argument_alone(path: str) -> None:
    signs, y, onto = random_signs(1, 12).double(), normal(5, 4), normal(5, 12)
    for place in range(2):
        with forward_ad.dual_level():
            duals = [y.clone().requires_grad_(), onto.clone().requires_grad_()]
            duals[place] = forward_ad.make_dual(duals[place], torch.ones_like(duals[place]))
            got = forward_ad.unpack_dual(unfold(duals[0], signs, -1, duals[1])).tangent
        assert_close(got, signs.expand(5, 12) if place == 0 else torch.ones(5, 12, **DOUBLE))
