"""The shipped contracts of methods and maps refuse what is broken, by the clause that it breaks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bozzetto.maps import LinearMap, linear_map
from bozzetto.methods import LowRank, Objective
from bozzetto.methods.method import Form
from bozzetto.ops import Dense, Op
from bozzetto.testing import check_map, check_method


def factors(layer: nn.Module) -> list[nn.Linear]:
    assert isinstance(layer, nn.Sequential)
    return [part for part in layer if isinstance(part, nn.Linear)]


class TooFewValues(LowRank):
    def values(self, m: LinearMap, size: int) -> int:
        return super().values(m, size) - 1


class TooLarge(LowRank):
    def sizes(self, m: LinearMap) -> list[int]:
        return [*super().sizes(m), 20]


class Unordered(LowRank):
    def sizes(self, m: LinearMap) -> list[int]:
        return super().sizes(m)[::-1]


class WrongMost(LowRank):
    def most(self, m: LinearMap, keep: float = 1.0) -> int:
        return super().most(m, keep) + (keep < 1)


class TooModest(LowRank):
    def most(self, m: LinearMap, keep: float = 1.0) -> int:
        return super().most(m, keep) - (keep < 1)


class WrongWeight(LowRank):
    def weight(self, layer: nn.Module, m: LinearMap) -> Tensor:
        return 1.01 * super().weight(layer, m)


class WrongFit(LowRank):
    def fit_(self, layer: nn.Module, objective: Objective) -> None:
        super().fit_(layer, objective)
        with torch.no_grad():
            factors(layer)[0].weight.mul_(0.9)


class WrongBias(LowRank):
    def fit_(self, layer: nn.Module, objective: Objective) -> None:
        super().fit_(layer, objective)
        with torch.no_grad():
            factors(layer)[1].bias.add_(1)


class NotFinite(LowRank):
    def fit_(self, layer: nn.Module, objective: Objective) -> None:
        super().fit_(layer, objective)
        assert objective.moment is not None or objective.stats is None
        if objective.moment is not None and objective.moment.diagonal(0, 1, 2).min() < 1e-3:
            with torch.no_grad():
                factors(layer)[0].weight.fill_(torch.nan)


class TooHopeful(LowRank):
    def errors(self, objective: Objective, sizes: Sequence[int]) -> list[float]:
        return [0.9 * error for error in super().errors(objective, sizes)]


class TooGloomy(LowRank):
    def errors(self, objective: Objective, sizes: Sequence[int]) -> list[float]:
        return [3 * error for error in super().errors(objective, sizes)]


class WrongForms(LowRank):
    def forms(self, objective: Objective) -> list[Form]:
        return [form._replace(error=1.0) for form in super().forms(objective)]


class GlobalState(LowRank):
    def build(self, m: LinearMap, size: int, seed: int) -> nn.Module:
        layer = super().build(m, size, seed)
        with torch.no_grad():
            factors(layer)[0].weight.mul_(next(COUNTER))
        return layer


COUNTER = iter(range(1, 10**6))


class LoudStart(LowRank):
    def build(self, m: LinearMap, size: int, seed: int) -> nn.Module:
        layer = super().build(m, size, seed)
        with torch.no_grad():
            factors(layer)[0].weight.mul_(1.5)
        return layer


@dataclass(frozen=True)
class Hidden(LowRank):
    """Keeps a dense weight that is no parameter."""

    def build(self, m: LinearMap, size: int, seed: int) -> nn.Module:
        layer = super().build(m, size, seed)
        if not m.weight.is_meta:
            layer.register_buffer("spare", m.weight.detach().clone())
        return layer


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (TooFewValues, "values"),
        (TooLarge, "must save values"),
        (Unordered, "must ascend"),
        (WrongMost, "keeps more"),
        (TooModest, "is not the largest"),
        (WrongWeight, "apply the weight that it tells"),
        (WrongFit, "recover a weight of its own making"),
        (WrongBias, "keep the mean of the output"),
        (NotFinite, "must be finite"),
        (TooHopeful, "errors told"),
        (TooGloomy, "errors told"),
        (WrongForms, "has error"),
        (GlobalState, "one seed"),
        (LoudStart, "output variance"),
        (Hidden, "the same on meta"),
    ],
)
def test_the_contract_names_what_a_broken_method_breaks(broken: type[LowRank], clause: str) -> None:
    with pytest.raises(AssertionError, match=clause):
        check_method(broken(), linear_map(nn.Linear(14, 10)))


class Scaled(nn.Linear):
    """A layer of its own kind, which says of itself what is not true."""


class Doubled(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Flipped(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.neg_()
        return super().forward(x)


class Backwards(Dense):
    def patches(self, x: Tensor) -> Tensor:
        return super().patches(x.flip(-1))


class Shuffled(Scaled):
    """Its op gives the patches in the wrong order."""


class Narrow(Dense):
    def pointwise(self, n: int, m: int, *, bias: bool, like: Tensor) -> nn.Module:
        return super().pointwise(n, m - 1, bias=bias, like=like)


class Cut(Scaled):
    """Its op builds layers that are too narrow."""


@linear_map.register
def _(module: Scaled) -> LinearMap:
    op = {Shuffled: Backwards, Cut: Narrow, Unknown: Other}.get(type(module), Dense)()
    return LinearMap(module.weight, module.bias, op)


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (Doubled, "must give what the layer gives"),
        (Flipped, "weight must not be changed"),
        (Shuffled, "matrix times patches"),
        (Cut, "two parts give"),
    ],
)
def test_the_contract_names_what_a_broken_map_breaks(broken: type[Scaled], clause: str) -> None:
    with pytest.raises(AssertionError, match=clause):
        check_map(broken(6, 5), torch.randn(3, 6))


def test_a_layer_of_a_users_own_kind_can_be_checked() -> None:
    check_map(Scaled(6, 5))
    check_method(LowRank(), linear_map(Scaled(6, 5)))


class Other(Op):
    """Meets its input as no op of the library does."""

    groups = 1

    def layer(self, n: int, m: int, *, bias: bool, like: Tensor) -> nn.Module:
        return nn.Linear(n, m, bias, like.device, like.dtype)

    def pointwise(self, n: int, m: int, *, bias: bool, like: Tensor) -> nn.Module:
        return self.layer(n, m, bias=bias, like=like)

    def sketched(self) -> Any:
        raise NotImplementedError

    def patches(self, x: Tensor) -> Tensor:
        return x.reshape(1, -1, x.shape[-1])


class Unknown(Scaled):
    pass


def test_a_map_of_an_unknown_kind_needs_an_input() -> None:
    with pytest.raises(ValueError, match="an input is needed for Other"):
        check_map(Unknown(6, 5))
    check_map(Unknown(6, 5), torch.randn(3, 6))
