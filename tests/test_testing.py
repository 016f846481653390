"""The shipped contracts: each kind of broken sketch is refused, by the clause that it breaks."""

import pytest
import torch
from torch import Tensor, nn

from bozzetto.sketch import Sign, Sketch
from bozzetto.testing import check_sketch


class Biased(Sign):
    def dense(self) -> Tensor:
        return super().dense() * 1.1

    def down(self, x: Tensor, dim: int = -1) -> Tensor:
        return super().down(x, dim) * 1.1

    def up(self, y: Tensor, dim: int = -1) -> Tensor:
        return super().up(y, dim) * 1.1


class WrongDown(Sign):
    def down(self, x: Tensor, dim: int = -1) -> Tensor:
        return super().down(x, dim).abs()


class WrongUp(Sign):
    def up(self, y: Tensor, dim: int = -1) -> Tensor:
        return 2 * super().up(y, dim)


class AxisMoved(Sign):
    def down(self, x: Tensor, dim: int = -1) -> Tensor:
        return super().down(x.movedim(dim, -1))


class WrongVariance(Sign):
    def variance(self) -> float:
        return super().variance() * 1.2


class AnyRange(Sign):
    def __init__(self, n: int, k: int, seed: int = 0) -> None:
        super().__init__(max(n, 1), min(max(k, 1), max(n, 1)), seed)


class Broadcasting(Sign):
    def down(self, x: Tensor, dim: int = -1) -> Tensor:
        shape = list(x.shape)
        shape[dim] = self.n
        return super().down(x.expand(shape) if x.shape[dim] == 1 else x, dim)


class OneSeed(Sign):
    def __init__(self, n: int, k: int, seed: int = 0) -> None:
        super().__init__(n, k, 0)


class NoSeed(Sign):
    def __init__(self, n: int, k: int, seed: int = 0) -> None:
        super().__init__(n, k, int(torch.randint(1 << 40, ())))


class GlobalState(Sign):
    def __init__(self, n: int, k: int, seed: int = 0) -> None:
        super().__init__(n, k, seed)
        torch.rand(1)


class Stored(Sign):
    def _store(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value)


class Trained(Sign):
    def __init__(self, n: int, k: int, seed: int = 0) -> None:
        super().__init__(n, k, seed)
        self.gain = nn.Parameter(torch.ones(()))


class LostInCopies(Sign):
    def __deepcopy__(self, memo: object) -> Sketch:
        return Sign(self.n, self.k, self.seed + 1)


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (Biased, "UᵀU"),
        (WrongDown, "down of"),
        (WrongUp, "up of"),
        (AxisMoved, "down of"),
        (WrongVariance, "variance"),
        (AnyRange, "k=0 for n=5"),
        (Broadcasting, "down of 1 for n=7"),
        (OneSeed, "different seeds"),
        (NoSeed, "one seed"),
        (GlobalState, "global generator"),
        (Stored, "stores"),
        (Trained, "stores"),
        (LostInCopies, "deepcopy"),
    ],
)
def test_the_contract_names_what_a_broken_sketch_breaks(broken: type[Sketch], clause: str):
    with torch.random.fork_rng([]), pytest.raises((AssertionError, ValueError), match=clause):
        check_sketch(broken)
