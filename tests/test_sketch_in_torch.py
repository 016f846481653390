"""What torch does to a module, done to every sketch: dtypes, gradients, vmap, export, compile."""

import copy
import shutil

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from bozzetto.linalg import random_normal
from bozzetto.sketch import FAMILIES, Sketch, make_sketch

every_family = pytest.mark.parametrize("family", FAMILIES)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return random_normal(seed, torch.Size(shape).numel()).view(shape)


def assert_rounds_to(got: Tensor, u: Tensor, x: Tensor):
    """U x, up to eight roundings of the sum of the magnitudes of its terms."""
    u, x = u.double(), x.double()
    error = (got.double() - x @ u.T).abs()
    assert (error <= 8 * torch.finfo(got.dtype).eps * (x.abs() @ u.abs().T)).all(), error.max()


@every_family
def test_a_sketch_prints_what_decides_it(family: str):
    sketch = make_sketch(family, 12, 5, seed=3)
    assert repr(sketch) == f"{type(sketch).__name__}(n=12, k=5, seed=3)"


@every_family
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("moved", ["input", "input and sketch"])
def test_every_precision_is_kept_and_exact_to_its_rounding(family: str, dtype, moved: str):
    sketch = make_sketch(family, 40, 8, seed=1)
    u = copy.deepcopy(sketch).double().dense()
    if moved == "input and sketch":
        sketch = sketch.to(dtype)
    x, y = normal(6, 40).to(dtype), normal(6, 8).to(dtype)
    down, up = sketch.down(x), sketch.up(y)
    assert down.dtype == up.dtype == dtype
    assert_rounds_to(down, u, x)
    assert_rounds_to(up, u.T, y)


@every_family
def test_autocast_works_forward_and_backward(family: str):
    sketch = make_sketch(family, 40, 8, seed=1)
    x = normal(6, 40).float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = sketch.down(x)
        z = sketch.up(y)
    z.float().sum().backward()
    assert_rounds_to(y.bfloat16(), sketch.dense(), x.detach())
    assert_rounds_to(z.detach().bfloat16(), sketch.dense().T, y.detach())
    assert x.grad is not None
    expected = torch.ones(40) @ sketch.dense().T @ sketch.dense()
    assert_close(x.grad[0], expected, atol=0.05 * float(expected.abs().max()), rtol=0)


@every_family
def test_a_non_contiguous_input_gives_the_same(family: str):
    sketch = make_sketch(family, 12, 5, seed=1).double()
    u = sketch.dense()
    wide = normal(3, 4, 24)
    for x in (wide[..., ::2], wide.movedim(0, 1)[..., 12:], normal(4, 1).expand(4, 12)):
        assert not x.is_contiguous()
        assert_close(sketch.down(x), x @ u.T)
        assert_close(sketch.up(x[..., :5]), x[..., :5] @ u)
    channels_last = normal(2, 12, 3, 3).contiguous(memory_format=torch.channels_last)
    expected = torch.einsum("kn,bnhw->bkhw", u, channels_last)
    assert_close(sketch.down(channels_last, 1), expected)


@every_family
def test_the_input_is_not_written_to(family: str):
    sketch = make_sketch(family, 12, 12, seed=1)
    x = normal(3, 12)
    before = x.clone()
    sketch.up(sketch.down(x)).add_(1)
    assert_close(x, before, rtol=0, atol=0)


@every_family
def test_the_gradient_of_down_is_up_and_of_up_is_down(family: str):
    sketch = make_sketch(family, 12, 5, seed=1).double()
    x, y = normal(3, 12).requires_grad_(), normal(3, 5, seed=1).requires_grad_()
    (of_down,) = torch.autograd.grad(sketch.down(x), x, y)
    (of_up,) = torch.autograd.grad(sketch.up(y), y, x)
    assert_close(of_down, sketch.up(y))
    assert_close(of_up, sketch.down(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own jacfwd
@every_family
def test_vmap_and_functional_jacobians_work(family: str):
    sketch = make_sketch(family, 12, 5, seed=1).double()
    x, y = normal(3, 12, 4), normal(3, 5, 4)
    assert_close(torch.vmap(sketch.down, in_dims=2)(x), sketch.down(x, 1).movedim(2, 0))
    assert_close(torch.vmap(sketch.up, in_dims=2)(y), sketch.up(y, 1).movedim(2, 0))
    nested = torch.vmap(torch.vmap(lambda v: sketch.down(v, 0), in_dims=1))(x)
    assert_close(nested, sketch.down(x, 1).mT)
    assert_close(torch.func.jacrev(sketch.down)(x[0, :, 0]), sketch.dense())
    assert_close(torch.func.jacfwd(sketch.up)(y[0, :, 0]), sketch.dense().T)


@every_family
def test_a_sketch_is_built_on_the_meta_device_without_data(family: str):
    with torch.device("meta"):
        sketch = make_sketch(family, 12, 5)
        x, y = torch.empty(3, 12), torch.empty(3, 5)
    assert all(buffer.is_meta for buffer in sketch.buffers())
    assert sketch.down(x).shape == y.shape
    assert sketch.up(y).shape == x.shape
    assert sketch.dense().shape == (5, 12)
    assert sketch.variance() == make_sketch(family, 12, 5).variance()


class RoundTrip(nn.Module):
    """Both directions, along an inner axis."""

    def __init__(self, sketch: Sketch) -> None:
        super().__init__()
        self.sketch = sketch

    def forward(self, x: Tensor) -> Tensor:
        return self.sketch.up(self.sketch.down(x, 1), 1)


@every_family
@pytest.mark.parametrize("strict", [True, False])
def test_a_sketch_exports_with_a_free_batch_size(family: str, strict: bool):
    model = RoundTrip(make_sketch(family, 12, 5, seed=1))
    shapes = {"x": {0: torch.export.Dim("batch")}}
    x = normal(3, 12, 2).float()
    program = torch.export.export(model, (x,), dynamic_shapes=shapes, strict=strict)
    other = normal(5, 12, 2).float()
    assert_close(program.module()(other), model(other))


@every_family
def test_a_sketch_compiles_into_one_graph_with_its_gradient(family: str):
    torch.compiler.reset()
    model = RoundTrip(make_sketch(family, 12, 5, seed=1))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = normal(3, 12, 2).float().requires_grad_()
    y, expected = compiled(x), model(x)
    assert_close(y, expected)
    ones = torch.ones_like(y)
    assert_close(torch.autograd.grad(y, x, ones), torch.autograd.grad(expected, x, ones))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch's own
def test_a_sketch_compiles_to_machine_code(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    model = RoundTrip(make_sketch("fold", 12, 5, seed=1))
    x = normal(3, 12, 2).float()
    assert_close(torch.compile(model, fullgraph=True)(x), model(x))
