"""What calibration keeps of layers that are called in unusual ways, and what it refuses."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import bozzetto as bz


class OfAVector(nn.Module):
    """A layer that is called on a vector, without a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(6))
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x * self.first(self.token))


def test_a_layer_called_on_a_vector_has_that_vectors_moments() -> None:
    model, x = OfAVector(), torch.randn(8, 5)
    stats = bz.collect(model, [x])["first"]
    token = model.token.detach().double()
    assert stats.positions == 1
    assert_close(stats.moment, torch.outer(token, token).unsqueeze(0), atol=1e-6, rtol=1e-6)
    assert isinstance(stats.gradient, Tensor)
    assert torch.linalg.matrix_rank(stats.gradient, atol=1e-6).item() == 1


def test_an_empty_batch_counts_for_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    x, none = torch.randn(5, 3, 4, 4), torch.zeros(0, 3, 4, 4)
    wanted, found = bz.collect(model, [x]), bz.collect(model, [x, none, none])
    for path, stats in wanted.items():
        assert_close(found[path].moment, stats.moment)
        assert found[path].positions == stats.positions
    indices = torch.zeros(0, dtype=torch.int64)
    assert bz.collect(nn.Embedding(5, 3), [indices]) == {}


def test_a_gradient_that_is_not_finite_names_batch_and_layer() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))

    def root(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().sum().sqrt()  # without a slope where all is right

    x = torch.randn(4, 6)
    batches = [(x, torch.zeros(4, 3)), (x, model(x).detach())]
    with pytest.raises(ValueError, match=r"batch 2 the gradient .* layer '\d' has NaN or infinity"):
        bz.collect(model, batches, loss=root)


def test_a_layer_whose_forward_was_replaced_is_left_alone() -> None:
    model, x = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)), torch.randn(40, 16)
    plain = model[0].forward
    model[0].forward = lambda input: 100 * plain(input).relu()
    small, plan = bz.compress(model, 0.8, [x])
    assert plan.dense["0"] == "Linear has a forward of its own"
    wanted = model(x).detach()
    assert (small(x) - wanted).norm() < 0.5 * wanted.norm()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.LSTMCell])
def test_a_composite_whose_forward_was_replaced_stays_as_it_is(kind: type[nn.Module]) -> None:
    layer = kind(4, 4)
    layer.forward = lambda *given: "mine"
    assert bz.expand(nn.Sequential(layer))(torch.zeros(2, 4)) == "mine"


def test_a_layer_called_with_more_than_its_input_stays_as_it_is() -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 64, 3, stride=2, padding=1)
            self.up = nn.ConvTranspose2d(64, 16, 3, stride=2, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(self.first(x).relu(), output_size=x.shape[-2:])

    model, x = Up().eval(), torch.randn(3, 3, 8, 8)
    small, plan = bz.compress(model, 0.98, [x])
    assert set(plan.choices) == {"first"}
    assert plan.dense["up"] == "no calibration batch reached it with an input and nothing else"
    wanted = model(x).detach()
    assert (small(x) - wanted).norm() < 0.5 * wanted.norm()
