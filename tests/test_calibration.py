"""Calibration data that is poor, constant, dead, or laid out in another way."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bozzetto as bz
from bozzetto.compress import survey
from networks import NETWORKS


def convolutions() -> nn.Sequential:
    """With batch norms, trained long enough that statistics are those of the data."""
    return nn.Sequential(
        nn.Conv2d(6, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 8, 3),
    )  # fmt: skip


def settled(model: nn.Sequential, x: Tensor) -> nn.Sequential:
    with torch.no_grad():
        for _ in range(40):
            model.train()(x)
    return model.eval()


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


def error(small: nn.Module, model: nn.Module, x: Tensor) -> float:
    wanted = outputs(model, x)
    return float((outputs(small, x) - wanted).norm() / wanted.norm())


def poor(kind: str) -> Tensor:
    x = torch.randn(12, 6, 10, 10)
    if kind == "constant":
        return torch.arange(6.0).view(1, 6, 1, 1).expand(12, 6, 10, 10).clone()
    if kind == "rank one":
        return x[:, :1] * torch.arange(1.0, 7.0).view(1, 6, 1, 1)
    x[:, 2:4] = 0.0  # dead channels
    x[:, 5] = 3.0
    return x


@pytest.mark.parametrize("kind", ["constant", "rank one", "dead"])
@pytest.mark.parametrize("method", ["hybrid", "lowrank", "signs", "sketched", "tucker"])
def test_every_method_stands_poor_inputs(method: str, kind: str) -> None:
    x = poor(kind)
    model = settled(convolutions(), x)
    small, plan = bz.compress(model, bz.Budget(bytes=0.8), [x[:6], x[6:]], methods=[method])
    assert plan.choices
    wanted = outputs(model, x)
    floor = 1e-5 * wanted.abs().max()
    assert outputs(small, x).isfinite().all()
    # Dropping every layer's deviation from the mean scores about 1.
    centred = wanted - wanted.mean((0, 2, 3), keepdim=True)
    change = (outputs(small, x) - wanted).norm()
    assert change <= 0.8 * centred.norm() + floor * wanted.numel() ** 0.5


def test_data_that_say_nothing_leave_a_network_that_is_right_on_them() -> None:
    model = nn.Sequential(nn.Linear(24, 32, bias=False), nn.ReLU(), nn.Linear(32, 24)).eval()
    x = torch.zeros(8, 24)
    small, _ = bz.compress(model, 0.5, [x])
    torch.testing.assert_close(outputs(small, x), outputs(model, x))
    assert all(p.isfinite().all() for p in small.parameters())


def test_a_dead_channel_keeps_its_batch_norm() -> None:
    x = torch.randn(16, 6, 10, 10)
    model = convolutions()
    with torch.no_grad():
        first = model.get_submodule("0")
        first.get_parameter("weight")[3] = 0.0  # constant from the start
        model.get_submodule("1").get_parameter("bias")[5] = -50.0  # dead behind the activation
    settled(model, x)
    small, _ = bz.compress(model, 0.8, [x])
    for path in ("1", "4"):
        norm, own = (net.get_submodule(path).state_dict()["running_var"] for net in (small, model))
        assert (norm >= 0).all()
        torch.testing.assert_close(norm[own < 1e-12], own[own < 1e-12])
    assert error(small, model, x) < 0.5


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "strided": lambda x: x.repeat_interleave(2, 0)[::2],
    "needing a gradient": lambda x: x.clone().requires_grad_(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_of_inputs_changes_nothing(layout: str) -> None:
    model, x = NETWORKS["cnn"]()
    other = LAYOUTS[layout](x)
    first, plan = bz.compress(model.eval(), 0.6, [x])
    second, again = bz.compress(model, 0.6, [other])
    assert {p: (c.method, c.size) for p, c in plan.choices.items()} == {
        p: (c.method, c.size) for p, c in again.choices.items()
    }
    torch.testing.assert_close(outputs(second, x), outputs(first, x), rtol=1e-3, atol=1e-4)


def test_a_model_in_channels_last_is_compressed_the_same() -> None:
    model, x = NETWORKS["cnn"]()
    model.eval()
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)  # pyright: ignore
    first, second = (bz.compress(m, 0.6, [x])[0] for m in (model, other))
    torch.testing.assert_close(outputs(second, x), outputs(first, x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_measured_whatever_mode_the_caller_is_in(mode: type) -> None:
    model, x = NETWORKS["mlp"]()
    wanted, _ = bz.compress(model.eval(), 0.6, [x])
    with mode():
        small, _ = bz.compress(model, 0.6, [x])
    torch.testing.assert_close(outputs(small, x), outputs(wanted, x))
    small(x).sum().backward()


class Pooled(nn.Module):
    """A layer at every position, its mean over positions, and a layer of that."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.last = nn.Linear(16, 24), nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.each(x).relu().mean(1))


def test_measured_effects_are_those_of_one_layer_alone() -> None:
    model, batches = Pooled().eval(), [torch.randn(20, 30, 16) for _ in range(4)]
    predicted = survey(model, batches)
    measured = predicted.measured(batches=2)
    used = [batches[0], batches[2]]
    for path in ("each", "last"):
        before, after = (found.menu.nearest(path, 0.5) for found in (predicted, measured))
        assert before.choice is not None
        small = bz.rebuild(model, bz.Plan({path: before.choice}, {}), predicted.stats)
        change = sum((outputs(small, x) - outputs(model, x)).square().sum() for x in used)
        assert after.impact == pytest.approx(float(change), rel=1e-4)
        forms = [c for c in predicted.menu.candidates if c.site == path]
        again = [c for c in measured.menu.candidates if c.site == path]
        ratio = after.impact / before.impact
        for form, scaled in zip(forms, again, strict=True):
            assert scaled.impact == pytest.approx(ratio * form.impact)
    small, plan = measured.compress(bz.Budget(params=0.6))
    assert plan.kept() <= 0.6
    assert small(batches[0]).shape == (20, 12)
    same, _ = bz.compress(model, 0.6, batches, measured=2)
    torch.testing.assert_close(dict(same.state_dict()), dict(small.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("measured", [-1, 1.5, True])
def test_costs_are_measured_on_a_number_of_batches(measured: Any) -> None:
    with pytest.raises(ValueError, match=f"1 batch or more; got {measured}"):
        bz.compress(Pooled().eval(), 0.6, [torch.randn(4, 3, 16)], measured=measured)
