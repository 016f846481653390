"""Calibration and networks as they come in reality: singular, badly scaled, damaged, foreign."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loads import with_outlier
from torch import Tensor, nn
from torch.testing import assert_close

import bozzetto as bz

METHODS = ("lowrank", "sketched", "signs", "hybrid")
every_method = pytest.mark.parametrize("method", METHODS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 24)).eval()


def error(small: nn.Module, model: nn.Module, x: Tensor) -> float:
    """Relative."""
    with torch.no_grad():
        got, want = small(x).double(), model(x).double()
    assert bool(got.isfinite().all())
    return float((got - want).norm() / want.norm())


def compressed(model: nn.Module, x: Tensor, **options: Any) -> nn.Module:
    keep = options.pop("keep", 0.6)
    return bz.compress(model, keep, [x], **options)[0]


@every_method
def test_inputs_of_few_dimensions(method: str) -> None:
    """The moment has rank 3: what calibration never shows costs nothing."""
    model, x = network(), normal(300, 3) @ normal(3, 24, seed=1)
    found = error(compressed(model, x, methods=method), model, normal(50, 3, seed=2) @ x[:3])
    assert found < {"lowrank": 0.1, "hybrid": 0.1}.get(method, 1.0)


@every_method
def test_channels_a_millionfold_apart(method: str) -> None:
    model, x = network(), normal(300, 24) * torch.logspace(-3, 3, 24)
    assert error(compressed(model, x, methods=method), model, x) < 1.0


@every_method
@pytest.mark.parametrize("factor", [1e2, 1e3])
def test_an_outlier_channel_costs_nothing(method: str, factor: float) -> None:
    """The same function of inputs of which one channel is as much larger than the others."""
    x = normal(300, 24)
    even = error(compressed(network(), x, methods=method), network(), x)
    model, larger = with_outlier(network(), x, factor)
    assert error(compressed(model, larger, methods=method), model, larger) < 1.1 * even


@every_method
def test_units_that_never_fire(method: str) -> None:
    model, x = network(), normal(300, 24)
    with torch.no_grad():
        model.get_parameter("0.bias")[::2] = -1e4
    assert error(compressed(model, x, methods=method), model, x) < 0.9


@every_method
def test_one_sample(method: str) -> None:
    model, x = network(), normal(1, 24)
    assert error(compressed(model, x, methods=method), model, x) < 0.1


def test_a_huge_batch_is_as_good_as_its_parts() -> None:
    model, x = network(), normal(100_000, 24)
    whole, _ = bz.compress(model, 0.6, [x])
    parts, _ = bz.compress(model, 0.6, list(x.split(10_000)))
    assert error(whole, model, x) == pytest.approx(error(parts, model, x), rel=0.02)


def test_inputs_that_are_all_zero() -> None:
    model, x = network(), torch.zeros(30, 24)
    small = compressed(model, x)
    assert_close(small(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_named(bad: float) -> None:
    """With the batch and the layer where it arrives first."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    batches = [normal(4, 3, 8, 8, seed=i) for i in range(3)]
    batches[1][2, 1, 3, 3] = bad
    with pytest.raises(ValueError, match="in batch 2 the input of layer '0' has NaN or infinity"):
        bz.compress(model, 0.6, batches)


def test_a_value_that_overflows_inside_is_named() -> None:
    model = network()
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(1e38)
    with pytest.raises(ValueError, match="in batch 1 the input of layer '2' has NaN or infinity"):
        compressed(model, normal(30, 24) * 1e5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(bad: float) -> None:
    model = network()
    with torch.no_grad():
        model.get_parameter("2.weight")[3, 4] = bad
    with pytest.raises(ValueError, match=r"a target needs finite weights; \['2.weight'\]"):
        compressed(model, normal(30, 24))


def _partly_meta() -> nn.Module:
    model = network()
    model[2].to("meta")  # pyright: ignore[reportIndexIssue]
    return model


@pytest.mark.parametrize(
    ("model", "device", "what"),
    [
        (lambda: network().to("meta"), "cpu", "float32 on meta"),
        (_partly_meta, "cpu", "float32 on meta"),
        (network, "meta", "on meta"),
    ],
)
def test_devices_that_do_not_go_together_are_named(
    model: Callable[[], nn.Module], device: str, what: str
) -> None:
    with pytest.raises(ValueError, match=what):
        compressed(model(), normal(30, 24).to(device))


def _scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(network())


def _traced() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(network(), normal(2, 24))  # pyright: ignore[reportReturnType]


def _inside() -> nn.Module:
    return nn.Sequential(_scripted(), nn.Linear(24, 24))


def _quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(network(), {nn.Linear}, dtype=torch.qint8)


def _exported() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(network(), (normal(30, 24),)).module()


def _lazy() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.LazyLinear(48), nn.ReLU(), nn.Linear(48, 24))


@pytest.mark.parametrize(
    ("made", "kind", "what"),
    [
        (_scripted, TypeError, "scripted or traced cannot be rewritten"),
        (_traced, TypeError, "scripted or traced cannot be rewritten"),
        (_inside, TypeError, r"such modules at \['0'"),
        (_quantised, ValueError, "nothing to compress.*quantized"),
        (_exported, ValueError, "nothing to compress.*'0'"),
        (_lazy, ValueError, r"lazy layers need to see a batch first.*0\.weight"),
        (lambda: torch.export.export(network(), (normal(30, 24),)), TypeError, "ExportedProgram"),
        (lambda: "network", TypeError, "got str"),
    ],
)
def test_what_cannot_be_compressed_says_why(
    made: Callable[[], Any], kind: type[Exception], what: str
) -> None:
    model = made()
    warnings.simplefilter("ignore")  # torch's own, of copying its programs
    with pytest.raises(kind, match=what):
        compressed(model, normal(30, 24))
    with pytest.raises(kind):
        bz.sketch(model, 0.5)


def test_lazy_layers_that_saw_a_batch_are_layers() -> None:
    model = _lazy()
    with torch.no_grad():
        model(normal(2, 24))
    assert error(compressed(model, normal(300, 24)), model, normal(300, 24)) < 0.9


def test_a_compiled_network_gives_one_that_computes_for_itself() -> None:
    model = network()
    model.compile(backend="eager")
    small = compressed(model, normal(300, 24))
    with torch.no_grad():
        before = small(normal(5, 24))
        model.get_parameter("0.weight").mul_(0)
        assert_close(small(normal(5, 24)), before, rtol=0, atol=0)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_calibration_works_where_gradients_are_off(context: Callable[[], Any]) -> None:
    model, x = network(), normal(300, 24)
    with context():
        small = compressed(model, x)
    assert_close(small(x), compressed(model, x)(x), rtol=0, atol=0)


def test_other_defaults_of_torch_do_not_matter() -> None:
    model, x = network(), normal(300, 24)
    want = compressed(model, x)(x)
    try:
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
        got = compressed(model, x)(x)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
    assert_close(got, want, rtol=0, atol=0)
