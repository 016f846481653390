"""Bounds of layers and calls whose weights are not what they seem."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from bozzetto.analysis.crash import NoSoundBound, crash, crash_bound, critical_neurons

P = 0.2


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Hidden(nn.Module):
    """`rest` of four neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(n, m).double() for n, m in ((3, 4), (4, 2)))
        with torch.no_grad():
            for i, value in enumerate(self.parameters()):
                value.copy_(random(*value.shape, seed=i))

    def rest(self, h: Tensor) -> Tensor:
        return self.second(h)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(torch.relu(self.first(x)))


class Negated(Hidden):
    def rest(self, h: Tensor) -> Tensor:
        return self.second(-h)


class Padded(Hidden):
    def rest(self, h: Tensor) -> Tensor:
        return self.second(F.pad(h[:, :3], (0, 1), value=-5.0))


class Scaled(nn.Linear):
    """Its weight is not its map."""

    def forward(self, input: Tensor) -> Tensor:
        return 10 * F.linear(input, self.weight, self.bias)


class Own(nn.Tanh):
    """A subclass that changes nothing."""


class Subclassed(Hidden):
    def __init__(self) -> None:
        super().__init__()
        scaled = Scaled(4, 2).double()
        scaled.load_state_dict(self.second.state_dict())
        self.second, self.tanh = scaled, Own()

    def rest(self, h: Tensor) -> Tensor:
        return self.second(self.tanh(h))


class Parametrized(Hidden):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.weight_norm(self.second)


class Pruned(Hidden):
    def __init__(self) -> None:
        super().__init__()
        prune.random_unstructured(self.second, "weight", 0.3)


class OneNumber(Hidden):
    def rest(self, h: Tensor) -> Tensor:
        return self.second(h).sum(1)


class Aside(Hidden):
    """One activation never reaches the output."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        torch.tanh(h)
        return self.rest(h)


def exact(net: Hidden, x: Tensor) -> Tensor:
    """The expected error over all patterns in which the four neurons crash."""
    h = torch.relu(net.first(x))
    total = torch.zeros_like(net(x))
    for alive in itertools.product([0.0, 1.0], repeat=4):
        chance = (1 - P) ** sum(alive) * P ** (4 - sum(alive))
        total += chance * (net.rest(h * torch.tensor(alive)) - net(x)).abs()
    return total.detach()


@pytest.mark.parametrize(
    "kind", [Hidden, Negated, Padded, Subclassed, Parametrized, Pruned, OneNumber]
)
def test_no_bound_is_below_the_expectation(kind: type[Hidden]) -> None:
    net, x = kind().eval(), random(5, 3, seed=9)
    assert crash(net, [x], P, patterns=2).error.isfinite().all()
    found, truth = crash_bound(net, {"relu": P}, x=x), exact(net, x)
    for name, bound in found.bounds.items():
        assert (bound >= truth * (1 - 1e-9) - 1e-12).all(), name
    torch.testing.assert_close(found.best, truth)  # all 16 patterns are run
    assert (crash_bound(net, failures={"relu": 4}, x=x).best >= truth).all()


class Rounded(Hidden):
    def rest(self, h: Tensor) -> Tensor:
        return self.second(torch.div(h, 0.5, rounding_mode="floor"))


class Jump(Hidden):
    def rest(self, h: Tensor) -> Tensor:
        return self.second(F.softplus(h, 1.0, 0.1))


@pytest.mark.parametrize("kind", [Rounded, Jump])
def test_functions_that_jump_are_refused(kind: type[Hidden]) -> None:
    with pytest.raises(NoSoundBound, match="no sound bound for"):
        crash_bound(kind(), P, x=random(2, 3))


def test_an_activation_aside_of_the_output_does_no_harm() -> None:
    net, x = Aside(), random(5, 3)
    plain, aside = (crash_bound(n, failures=1, x=x).best for n in (Hidden(), net))
    torch.testing.assert_close(plain, aside)
    scores = critical_neurons(net, [x], by="gradient").scores
    assert (scores["tanh"] == 0).all()
    assert (scores["relu"] > 0).any()


def test_without_layers_or_inputs_there_is_nothing_to_bound() -> None:
    with pytest.raises(ValueError, match="no layer to crash"):
        crash_bound(Hidden(), {}, x=random(2, 3))
    with pytest.raises(ValueError, match="no layer to crash"):
        crash_bound(Hidden(), failures={}, x=random(2, 3))
    with pytest.raises(ValueError, match="all finite; got 2"):
        crash_bound(Hidden(), P, x=random(2, 3) * torch.nan)
    with pytest.raises(ValueError, match="at least one input"):
        crash_bound(Hidden(), P, x=random(0, 3))


class ByShape(nn.Linear):
    """A forward that no trace can look into."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input if len(input) > 0 else input * 2)


class Opaque(Hidden):
    def __init__(self) -> None:
        super().__init__()
        second = ByShape(4, 2).double()
        second.load_state_dict(self.second.state_dict())
        self.second = second


def test_a_forward_that_cannot_be_traced_is_run_whole_and_not_bounded() -> None:
    x = random(5, 3)
    plain, opaque = (crash(net, [x], P, patterns=32).error for net in (Hidden(), Opaque()))
    torch.testing.assert_close(plain, opaque)
    with pytest.raises(NoSoundBound, match="ByShape"):
        crash_bound(Opaque(), P, x=x)


def test_a_layer_with_a_hook_is_not_bounded() -> None:
    net = Hidden()
    net.second.register_forward_hook(lambda module, args, out: 3 * out)
    with pytest.raises(NoSoundBound, match=r"Linear: it has hooks"):
        crash_bound(net, P, x=random(2, 3))


def test_one_number_an_input_is_an_output() -> None:
    net, x = OneNumber(), random(5, 3)
    error = crash(net, [x], P, patterns=4000).error[0]
    assert abs(error.mean() - exact(net, x).mean()) <= 5 * error.std() / 4000**0.5
    crashes = critical_neurons(net, [x]).scores["relu"]
    slopes = critical_neurons(net, [x], by="gradient").scores["relu"]
    torch.testing.assert_close(crashes, slopes)  # it is linear in every neuron


class Everything(Hidden):
    def rest(self, h: Tensor) -> Tensor:
        return self.second(h).mean()


def test_other_outputs_and_inputs_are_told() -> None:
    with pytest.raises(TypeError, match="a single number"):
        crash(Everything(), [random(2, 3)], P)
    with pytest.raises(ValueError, match="at least one input"):
        crash(Hidden(), [random(0, 3)], P)
    with pytest.raises(TypeError, match="real numbers"):
        crash_bound(nn.Sequential(nn.Embedding(5, 2), nn.ReLU()), P, x=torch.zeros(2, 3).long())
