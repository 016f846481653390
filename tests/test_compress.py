import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import bozzetto as bz
from bozzetto.knapsack import Unreachable
from bozzetto.linalg import random_normal, seeded
from networks import NETWORKS

Network = tuple[nn.Module, Tensor]


def values(model: nn.Module) -> int:
    return sum({id(p): p.numel() for p in model.parameters()}.values())


def state(model: nn.Module) -> list[object]:
    tensors = [(name, value.clone()) for name, value in model.state_dict().items()]
    flags = [(m.training, len(m._forward_hooks)) for m in model.modules()]
    grads = [(p.requires_grad, p.grad) for p in model.parameters()]
    return [tensors, flags, grads, torch.get_rng_state().tolist()]


def assert_same(before: list[object], after: list[object]) -> None:
    for (name, old), (other, new) in zip(before[0], after[0], strict=True):  # pyright: ignore
        assert name == other
        torch.testing.assert_close(new, old, rtol=0, atol=0)
    assert before[1:] == after[1:]


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def test_the_delivered_network_meets_the_budget_as_counted_on_itself(network: Network) -> None:
    model, x = network
    small, plan = bz.compress(model, 0.7, [x])
    assert values(small) <= 0.7 * values(model)
    assert plan.small["params"] == values(small)
    assert outputs(small, x).shape == outputs(model, x).shape


def test_a_bound_on_multiply_adds_is_met_as_counted_on_the_delivered_network() -> None:
    model, x = NETWORKS["cnn"]()
    model.eval()
    small, _ = bz.compress(model, bz.Budget(flops=0.6), [x])
    counts = []
    for net in (model, small):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(x)
        counts.append(counter.get_total_flops())
    assert counts[1] <= 0.6 * counts[0]


def test_more_values_make_a_better_approximation(network: Network) -> None:
    model, x = network
    errors = []
    for keep in (0.6, 0.95):
        small, _ = bz.compress(model, keep, [x])
        errors.append((outputs(small, x) - outputs(model, x)).norm().item())
    assert errors[1] < errors[0]


def test_keeping_all_changes_nothing(network: Network) -> None:
    model, x = network
    small, plan = bz.compress(model, 1.0, [x])
    assert not plan.choices
    torch.testing.assert_close(outputs(small, x), outputs(model, x))


def test_the_users_model_is_never_changed(network: Network) -> None:
    model, x = network
    model.train()
    before = state(model)
    bz.compress(model, 0.8, [x])
    bz.sketch(model, 0.8)
    assert_same(before, state(model))


def test_the_users_model_is_unchanged_when_calibration_fails_midway() -> None:
    model, x = NETWORKS["mlp"]()
    before = state(model)
    with pytest.raises(ValueError, match="batch 2 of"):
        bz.compress(model, 0.5, [x, x[:, :3]])
    assert_same(before, state(model))


def test_refitting_on_the_real_inputs_helps() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(48, 48), nn.ReLU()) for _ in range(6)))
    x = torch.randn(400, 48)
    stats = bz.collect(model, [x])
    plan = bz.plan(model, stats, bz.Budget(params=0.4))
    alone = bz.rebuild(model, plan, stats)
    small, same = bz.compress(model, 0.4, [x])
    assert same.choices == plan.choices
    want = outputs(model, x)
    assert (outputs(small, x) - want).norm() < (outputs(alone, x) - want).norm()


def test_tied_weights_stay_tied_and_count_once() -> None:
    model, x = NETWORKS["language_model"]()
    small, plan = bz.compress(model, 0.5, [x], methods="lowrank")
    assert plan.tied == {"embedding": "head"}
    assert values(small) <= 0.5 * values(model)
    table = small.get_submodule("embedding.0").weight
    assert table is small.get_submodule("head.1").weight


def test_a_module_at_two_paths_stays_one() -> None:
    model, x = NETWORKS["shared"]()
    small, _ = bz.compress(model, 0.6, [x])
    assert small.get_submodule("first") is small.get_submodule("second")


def test_what_stays_dense_is_in_the_plan_with_its_reason() -> None:
    class Odd(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    model = nn.Sequential(nn.Linear(32, 64), Odd(64, 64), nn.Linear(64, 2))
    model.append(nn.utils.parametrizations.weight_norm(nn.Linear(2, 40)))
    _, plan = bz.compress(model, 0.8, [torch.randn(20, 32)])
    assert "forward of its own" in plan.dense["1"]
    assert "computed" in plan.dense["3"]


def test_a_layer_that_calibration_never_reaches_stays_dense_and_says_so() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    _, plan = bz.compress(Skips(), 0.8, [torch.randn(20, 32)])
    assert "no calibration batch reached it" in plan.dense["unused"]


@pytest.mark.parametrize("keep", [0, -0.1, 1.5, float("nan"), 2, True])
def test_keep_outside_its_range_is_refused(keep: float) -> None:
    model, x = NETWORKS["mlp"]()
    with pytest.raises(ValueError, match=r"keep is a fraction in \(0, 1\]; got"):
        bz.compress(model, keep, [x])


def test_a_budget_no_plan_meets_says_the_smallest_reachable() -> None:
    model, x = NETWORKS["mlp"]()
    with pytest.raises(Unreachable, match=r"smallest reachable is 0\.\d+"):
        bz.compress(model, 0.001, [x])
    with pytest.raises(Unreachable, match=r"the smallest is 0\.\d+"):
        bz.sketch(model, 0.001)


def test_a_model_without_layers_to_compress_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to compress"):
        bz.compress(nn.Sequential(nn.ReLU()), 0.5, [torch.randn(3, 4)])


def test_empty_calibration_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one batch; got none"):
        bz.compress(NETWORKS["mlp"]()[0], 0.5, [])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_calibration_that_is_not_finite_names_batch_and_layer(bad: float) -> None:
    model, x = NETWORKS["mlp"]()
    worse = x.clone()
    worse[3, 4] = bad
    with pytest.raises(ValueError, match="in batch 2 the input of layer '0' has NaN or infinity"):
        bz.compress(model, 0.5, [x, worse])


def test_a_sketched_network_keeps_what_was_asked_and_trains() -> None:
    model, x = NETWORKS["cnn"]()
    small, plan = bz.sketch(model, 0.5, seed=3)
    assert values(small) <= 0.5 * values(model)
    assert plan.small["params"] == values(small)
    small(x).square().mean().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_a_plan_rebuilds_bit_for_bit(network: Network) -> None:
    model, x = network
    first, plan = bz.sketch(model, 0.9, seed=1)
    again = bz.rebuild(model, bz.Plan.from_json(plan.to_json()))
    torch.testing.assert_close(outputs(again, x), outputs(first, x), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_floating_types_keep_theirs(dtype: torch.dtype) -> None:
    model, x = NETWORKS["mlp"]()
    small, _ = bz.compress(model.to(dtype), 0.6, [x.to(dtype)])
    assert {p.dtype for p in small.parameters()} == {dtype}


def test_the_small_network_exports_and_compiles() -> None:
    model, x = NETWORKS["cnn"]()
    for small in (bz.compress(model.eval(), 0.7, [x])[0], bz.sketch(model.eval(), 0.7)[0]):
        want = outputs(small.eval(), x)
        torch.testing.assert_close(torch.export.export(small, (x,)).module()(x), want)
        compiled = torch.compile(small, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), want)


def test_a_saved_network_comes_back_bit_for_bit(network: Network, tmp_path: Path) -> None:
    model, x = network
    small, plan = bz.compress(model, 0.8, [x])
    bz.save(tmp_path / "out", small, plan)
    back = bz.load(tmp_path / "out", copy.deepcopy(model))
    torch.testing.assert_close(outputs(back, x), outputs(small, x), rtol=0, atol=0)
    assert values(back) == values(small)


def test_another_process_computes_the_same(tmp_path: Path) -> None:
    model, x = NETWORKS["cnn"]()
    small, plan = bz.sketch(model.eval(), 0.6, seed=5)
    bz.save(tmp_path / "out", small, plan)
    torch.save((model.state_dict(), x), tmp_path / "given.pt")
    code = (
        "import sys, torch, bozzetto as bz; from networks import NETWORKS\n"
        f"state, x = torch.load({str(tmp_path / 'given.pt')!r})\n"
        f"model = NETWORKS['cnn']()[0]; small = bz.load({str(tmp_path / 'out')!r}, model)\n"
        f"torch.save(small(x).detach(), {str(tmp_path / 'got.pt')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
    got = torch.load(tmp_path / "got.pt")
    torch.testing.assert_close(got, outputs(small.eval(), x), rtol=0, atol=0)


def test_only_the_layers_asked_for_become_smaller() -> None:
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 24))
    _, made = bz.compress(model, 0.8, [torch.randn(64, 24)], layers=["2"])
    assert set(made.choices) == {"2"}
    assert made.dense == {"0": "not among the layers asked for"}


def test_a_pattern_that_fits_no_layer_is_refused() -> None:
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 24))
    with pytest.raises(ValueError, match=r"\['0', '2'\]; 'head.\*' fits none"):
        bz.compress(model, 0.8, [torch.randn(64, 24)], layers="head.*")


@pytest.mark.parametrize(
    ("batch", "came"),
    [
        (
            torch.ones(4, 24, dtype=torch.float64),
            r"batch 2 of \['torch.float64 \(4, 24\) on cpu'\]",
        ),
        (torch.ones(4, 23), r"batch 2 of \['torch.float32 \(4, 23\) on cpu'\]"),
        ({"pixels": torch.ones(4, 24)}, "unexpected keyword argument 'pixels'"),
    ],
)
def test_calibration_that_the_model_does_not_take_is_told(batch: object, came: str) -> None:
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 24))
    with pytest.raises(ValueError, match=f"its weights are \\['torch.float32 on cpu'\\].*{came}"):
        bz.compress(model, 0.8, [torch.ones(4, 24), batch])


class ByName(nn.Module):
    """Calls its layers with keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 32), nn.Linear(32, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(input=self.first(input=x).relu())


def test_layers_called_by_keyword_are_compressed_too() -> None:
    small, plan = bz.compress(ByName(), 0.7, [torch.randn(64, 24)])
    assert set(plan.choices) | set(plan.dense) == {"first", "second"}
    assert outputs(small, torch.randn(2, 24)).shape == (2, 24)


def test_dead_constant_and_badly_scaled_channels_give_finite_networks() -> None:
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 24)).eval()
    x = torch.randn(64, 24) * torch.logspace(-3, 3, 24)
    x[:, 3], x[:, 5] = 0.0, 7.0
    with torch.no_grad():
        model.get_parameter("0.bias")[:4] = -1e6  # dead units
    small, _ = bz.compress(model, 0.6, [x[:5], x[5:]])
    error = (outputs(small, x) - outputs(model, x)).norm() / outputs(model, x).norm()
    assert error < 0.1  # a few channels carry nearly all


def test_a_single_sample_is_calibration_enough_for_itself() -> None:
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 24)).eval()
    x = torch.randn(1, 24)
    small, _ = bz.compress(model, 0.3, [x])
    torch.testing.assert_close(outputs(small, x), outputs(model, x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sides": "left"}, "sides is 'both', 'in' or 'out'; got 'left'"),
        ({"terms": 0}, "whole number of terms >= 1; got 0"),
        ({"terms": 1.5}, "whole number of terms >= 1; got 1.5"),
        ({"family": "folded"}, "a sketch family is one of .*; got 'folded'"),
    ],
)
def test_options_of_a_sketched_layer_are_refused_where_they_enter(
    options: dict[str, object], told: str
) -> None:
    model, x = nn.Linear(20, 20), torch.randn(30, 20)
    with pytest.raises(ValueError, match=told):
        bz.compress(model, 0.5, [x], methods={"sketched": options})
    _, plan = bz.sketch(model, 0.5, sides="both")
    text = plan.to_json()
    for name, value in options.items():
        old = f'"{name}": {json.dumps(plan.choices[""].options[name])}'
        assert old in text
        text = text.replace(old, f'"{name}": {json.dumps(value)}')
    with pytest.raises(ValueError, match=told):
        bz.Plan.from_json(text)


def test_what_was_not_counted_is_told() -> None:
    _, plan = bz.sketch(nn.Linear(20, 20), 0.5)
    with pytest.raises(ValueError, match=r"counted were \['params'\]; got 'flops'"):
        plan.kept("flops")


def test_stats_of_other_layers_are_told() -> None:
    model, x = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20)), torch.randn(30, 20)
    plan = bz.plan(model, bz.collect(model, [x]), 0.5)
    with pytest.raises(ValueError, match="that the plan changes are needed; '0' has none"):
        bz.rebuild(model, plan, bz.collect(model, [x], paths=["1"]))


def test_batch_norms_of_every_kind_are_moved_by_what_their_inputs_moved() -> None:
    x = torch.randn(64, 24)
    results = []
    for norm in (nn.BatchNorm1d(24), nn.SyncBatchNorm(24)):
        with seeded(0, torch.device("cpu")):
            layers = nn.Linear(24, 24), nn.Linear(24, 24)
        model = nn.Sequential(layers[0], norm, nn.ReLU(), layers[1])
        norm.running_mean, norm.running_var = torch.ones(24), torch.full((24,), 3.0)
        results.append(outputs(bz.compress(model.eval(), 0.3, [x])[0], x))
    assert_close(results[0], results[1])


@pytest.mark.parametrize("method", ["lowrank", "sketched", "signs", "blocks", "hybrid"])
def test_what_was_frozen_stays_frozen(method: str) -> None:
    model, x = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40)), torch.randn(60, 40)
    model[0].bias.requires_grad_(False)
    model[1].weight.requires_grad_(False)
    small, plan = bz.compress(model, 0.45, [x], methods=[method])
    assert set(plan.choices) == {"0", "1"}
    for place, (weights, bias) in enumerate([(True, False), (False, True)]):
        free = {p.ndim == 1: p.requires_grad for p in small[place].parameters()}
        assert free == {False: weights, True: bias}


def test_a_seed_is_a_whole_number_that_a_plan_can_hold() -> None:
    model, x = nn.Linear(20, 20), torch.randn(30, 20)
    drawn = np.random.default_rng(0).integers(9)
    for plan in (bz.sketch(model, 0.5, seed=drawn)[1], bz.compress(model, 0.5, [x], seed=drawn)[1]):
        assert bz.Plan.from_json(plan.to_json()) == plan
    for wrong in ("1", 1.0, None):
        with pytest.raises(TypeError, match="a seed is a whole number; got "):
            bz.sketch(model, 0.5, seed=wrong)
        with pytest.raises(TypeError, match="a seed is a whole number; got "):
            bz.compress(model, 0.5, [x], seed=wrong)


@pytest.mark.parametrize(("name", "told"), [("methods", "methods are names"), ("layers", "layers")])
def test_what_names_nothing_is_told(name: str, told: str) -> None:
    with pytest.raises(TypeError, match=f"^{told}.*; got None"):
        bz.compress(nn.Linear(20, 20), 0.5, [torch.randn(30, 20)], **{name: None})


def test_a_layer_whose_bias_another_one_has_too_stays_as_it_is() -> None:
    model, x = nn.Sequential(*(nn.Linear(20, 20) for _ in range(3))), torch.randn(60, 20)
    model[1].bias = model[0].bias
    small, plan = bz.compress(model, 0.9, [x])
    assert set(plan.choices) == {"2"}
    assert plan.dense["0"] == plan.dense["1"] == "another module holds its bias too"
    assert small[1].bias is small[0].bias


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_is_made_and_trained_in_any_mode_is_trained(mode: type, tmp_path: Path) -> None:
    model, data = nn.Linear(40, 4), [(torch.randn(8, 40), torch.zeros(8, dtype=torch.int64))]
    recipe = bz.Recipe(epochs=2, ema=0.5)
    with mode():
        made, plan = bz.sketch(model, 0.5)
        bz.save(tmp_path / "small", made, plan)
        loaded = bz.load(tmp_path / "small", model)
    found = [bz.train(small, data, recipe).losses for small in (made, loaded)]
    with mode():
        again = bz.train(bz.load(tmp_path / "small", model), data, recipe).losses
    assert found == [again, again]
    assert again[1] < again[0]


def test_a_pruned_network_is_copied_as_it_is() -> None:
    from torch.nn.utils import prune

    with seeded(0, torch.device("cpu")):
        model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 24)).eval()
    prune.l1_unstructured(model[0], "weight", 0.5)
    x = random_normal(1, 40 * 24).view(40, 24).float()
    expected = model(x)
    assert not model[0].weight.is_leaf
    small, plan = bz.compress(model, 0.8, [x])
    assert "computed" in plan.dense["0"]
    assert [*plan.choices] == ["2"]
    assert_close(small[0](x), model[0](x))
    assert_close(bz.nn.for_inference(model, x)(x), expected, atol=1e-5, rtol=1e-5)
    fresh, _ = bz.sketch(model, 0.8)
    assert fresh(x).shape == expected.shape
    assert_close(model(x), expected, rtol=0, atol=0)
