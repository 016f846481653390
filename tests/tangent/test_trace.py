"""A traced module is the program that one would write for it by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from bozzetto.tangent import (
    Gelu,
    Input,
    Program,
    Quadrature,
    UnreadableError,
    Vector,
    apply,
    relu,
    trace,
)
from bozzetto.tangent.blocks import dense, flatten_readout, layer_norm
from bozzetto.tangent.images import Image, Window


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def set_variances(model: nn.Module, weight: float, bias: float) -> nn.Module:
    """Entries of one size, so that the variances read are exactly these."""
    with torch.no_grad():
        for p in model.parameters():
            fan_in = p[0].numel() if p.ndim > 1 else 1
            p.fill_((weight / fan_in) ** 0.5 if p.ndim > 1 else bias**0.5)
    return model.double()


def same(model: nn.Module, program: Program, x: Tensor) -> None:
    read = trace(set_variances(model, 1.5, 0.2), x)
    torch.testing.assert_close(read.nngp(x), program.nngp(x))
    torch.testing.assert_close(read.ntk(x), program.ntk(x))


def layer(x: Vector, name: str, width: str | int = "n") -> Vector:
    return dense(x, name, variance=1.5, bias=0.2, width=width)


def test_a_dense_network():
    model = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 1)
    )
    h = apply(Gelu(), layer(apply(relu, layer(Input(4, 1), "a")), "b"))
    same(model, Program(layer(h, "c", 1)), draw(3, 4))


class Residual(nn.Module):
    """A skip, a scale, functional activations and a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h + 0.5 * self.twice(F.relu(h))
        return self.last(torch.tanh(self.twice(h)))


def test_skips_and_shared_layers():
    from bozzetto.tangent import Bias, Matrix

    w, b = Matrix("twice", 1.5), Bias("n", 1, "b", 0.2)
    h = layer(Input(4, 1), "first")
    h = h + 0.5 * (w @ apply(relu, h) + b)
    last = layer(apply(Quadrature(torch.tanh), w @ h + b), "last", 1)
    same(Residual(), Program(last), draw(3, 4))


def test_images():
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(5, 5, 3, padding=1, padding_mode="circular", bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 1, bias=False),
    )
    image = Image(Input(2, 64), (8, 8))
    image = image.convolve(Window((3, 3), (2, 2), 1), name="a", variance=1.5)
    image = image.map(apply(relu, image.vector)).average(Window((2, 2), (2, 2)))
    image = image.convolve(Window((3, 3), padding="circular"), name="b", variance=1.5)
    last = flatten_readout(apply(relu, image.vector), variance=1.5)
    same(model, Program(last), draw(2, 2, 8, 8))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 1)
        self.norm = nn.LayerNorm(8, eps=0.0, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x).relu()).mean(1))


def test_tokens_with_a_norm_and_a_mean():
    h = layer_norm(apply(relu, layer(Input(4, 5), "first"))).mean()
    same(Tokens(), Program(layer(h, "last", 1)), draw(2, 5, 4))


def test_everything_that_cannot_be_read_is_named():
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 1)
    )
    with pytest.raises(UnreadableError, match="without groups") as caught:
        trace(model, draw(1, 4, 4, 4))
    assert len(caught.value.parts) == 1
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.raises(UnreadableError, match="BatchNorm1d"):
        trace(model, draw(1, 4))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class TiedReadout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4, bias=False)
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.relu(self.inner(torch.relu(self.first(x)))))


def test_control_flow_is_named_and_a_tied_readout_refused():
    with pytest.raises(UnreadableError, match="control flow"):
        trace(Branching(), draw(1, 4))
    with pytest.raises(ValueError, match="'inner' is also used inside"):
        trace(TiedReadout(), draw(1, 4)).ntk(draw(1, 4))
    with pytest.raises(ValueError, match="2, 3 or 4 axes"):
        trace(Branching(), draw(4))


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x) + 1.0))


def rows_of_pixels(last: nn.Module) -> nn.Module:
    """A layer on the last axis of an image, which holds pixels."""
    return nn.Sequential(nn.Conv2d(3, 5, 1), last, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (nn.Sequential(weight_norm(nn.Linear(4, 1))), (2, 4), "computed from other parameters"),
        (Shifted(), (2, 4), "adds a constant"),
        (rows_of_pixels(nn.Linear(5, 5)), (2, 3, 5, 5), r"rows of pixels \(5, 5\)"),
        (
            rows_of_pixels(nn.LayerNorm(5, elementwise_affine=False)),
            (2, 3, 5, 5),
            r"rows of pixels \(5, 5\)",
        ),
        (rows_of_pixels(nn.AvgPool2d(2, divisor_override=1)), (2, 3, 4, 4), "divisor_override"),
    ],
)
def test_what_would_be_misread_is_refused(
    model: nn.Module, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(UnreadableError, match=message):
        trace(model, draw(*shape))


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_an_elu_is_integrated_on_both_sides_of_its_kink(alpha: float) -> None:
    elu = nn.ELU(alpha)
    h = apply(Quadrature(elu, 200, "polar"), layer(Input(4, 1), "a"))
    same(
        nn.Sequential(nn.Linear(4, 8), elu, nn.Linear(8, 1)), Program(layer(h, "b", 1)), draw(3, 4)
    )


class Counting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / len(x)


def test_the_length_of_a_batch_is_control_flow() -> None:
    with pytest.raises(UnreadableError, match="control flow"):
        trace(Counting(), draw(2, 4))
