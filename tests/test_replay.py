"""Replay: what is final runs once a batch, and nothing else changes."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

import bozzetto as bz
from bozzetto.replay import Replay

Network = tuple[nn.Module, Tensor]


class Residual(nn.Module):
    """A block that reads its input twice and changes what its layer returns in place."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.layer, self.act = nn.Linear(n, n), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.layer(x))


class Twice(nn.Module):
    """Applies its first layer before and after the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.second(self.first(x)))


def calls_of(network: nn.Module) -> Counter[str]:
    """Counts the calls of every module's own forward."""
    counts: Counter[str] = Counter()

    def counting(path: str, module: nn.Module) -> None:
        forward = module.forward

        def run(*args: Tensor) -> Tensor:
            counts[path] += 1
            return forward(*args)

        module.forward = run

    for path, module in network.named_modules():
        counting(path, module)
    return counts


def test_refitting_with_and_without_it_is_the_same(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = network
    batches = [x, x.flip(0)]
    quick, _ = bz.compress(model, 0.7, batches)
    monkeypatch.setattr(Replay, "_final", lambda self, done: {})
    slow, _ = bz.compress(model, 0.7, batches)
    torch.testing.assert_close(dict(quick.state_dict()), dict(slow.state_dict()), rtol=0, atol=0)


def test_inputs_are_those_of_the_network() -> None:
    network = nn.Sequential(Residual(6), Residual(6), nn.Linear(6, 3)).eval()
    batches = [torch.randn(4, 6), torch.randn(5, 6)]
    order = ["0.layer", "1.layer", "2"]
    replay = Replay(network, batches, order)
    for place, path in enumerate(order):
        found = [x for (x,) in replay.inputs(path, 1, order[:place])]
        with torch.no_grad():
            wanted = [network[:place](x) for x in batches]
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_what_is_final_runs_once_a_batch() -> None:
    network = nn.Sequential(Residual(6), Residual(6), Residual(6)).eval()
    counts = calls_of(network)
    order = [f"{i}.layer" for i in range(3)]
    replay = Replay(network, [torch.randn(4, 6)] * 2, order)
    for place, path in enumerate(order):
        list(replay.inputs(path, 1, order[:place]))
    # Once to reach the layer inside it, once when the next one is reached.
    assert (counts["0"], counts["1"], counts["2"]) == (4, 4, 2)
    assert counts["0.layer"] == counts["1.layer"] == 2
    assert counts["2.layer"] == 0  # reached, not run


def test_a_later_call_of_a_final_module_sees_the_weights_of_then() -> None:
    network, x = Twice().eval(), torch.randn(3, 6)
    order = ["first", "second"]
    replay = Replay(network, [x], order)
    ((reached,),) = replay.inputs("second", 1, ["first"])
    with torch.no_grad():
        network.second.weight.mul_(2)
        wanted = network.second(network.first(x))
    ((_, again),) = replay.inputs("first", 2, order)
    torch.testing.assert_close(reached, network.first(x).detach(), rtol=0, atol=0)
    torch.testing.assert_close(again, wanted, rtol=0, atol=0)


def test_it_leaves_no_trace_even_when_the_network_fails() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    network = nn.Sequential(nn.Linear(6, 6), Fails(), nn.Linear(6, 6)).eval()
    replay = Replay(network, [torch.randn(2, 6)], ["0", "2"])
    with pytest.raises(RuntimeError, match="no"):
        list(replay.inputs("2", 1, ["0"]))
    assert all("forward" not in m.__dict__ and not m._forward_pre_hooks for m in network.modules())
