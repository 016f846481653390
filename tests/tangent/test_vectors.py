"""Every reference vector within its tolerance, by programs and by fast kernels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bozzetto.tangent import (
    Erf,
    Gelu,
    Input,
    Matrix,
    Program,
    Realised,
    Rectifier,
    Vector,
    apply,
    empirical_ntk,
    relu,
)
from bozzetto.tangent.batchnorm import BatchNormRectifier
from bozzetto.tangent.blocks import (
    batch_norm_relu,
    dense,
    flatten_readout,
    readout,
    recurrent,
    transformer_block,
)
from bozzetto.tangent.fast import (
    Recurrence,
    Transformer,
    batch_normalised_kernels,
    recurrent_kernels,
    transformer_kernels,
)
from bozzetto.tangent.images import Image, Window

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "ntk"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs ../shared/data/ntk")


def load(name: str) -> dict[str, Tensor]:
    path = FOLDER / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    with np.load(path) as data:
        return {
            k: torch.from_numpy(v) for k, v in data.items() if v.dtype.kind in "fbi" and v.ndim
        } | {
            k: torch.tensor(v.item())
            for k, v in data.items()
            if v.dtype.kind in "fbi" and not v.ndim
        }


def mlp(depth: int, phi, variance: float, bias: float, last: float | None = None) -> Vector:
    h: Vector = Input(10, 1)
    for i in range(depth):
        h = apply(phi, dense(h, f"W{i}", variance=variance, bias=bias))
    return readout(h) if last is None else dense(h, "last", bias=last, width=1)


def residual_mlp() -> Vector:
    h = dense(Input(10, 1), "first", variance=2, bias=0.01)
    h = h + dense(apply(relu, h), "branch", variance=2, bias=0.01)
    return readout(apply(relu, h))


def convolutions(padding, read: Callable[[Image], Vector]) -> Vector:
    image = Image(Input(3, 64), (8, 8))
    for i in range(2):
        image = image.convolve(Window((3, 3), padding=padding), name=f"c{i}", variance=2, bias=0.01)
        image = image.map(apply(relu, image.vector))
    return read(image)


NEURAL_TANGENTS: dict[str, Callable[[], Vector]] = {
    "fc_relu_depth3": lambda: mlp(3, relu, 2, 0.01, 0.0),
    "fc_relu_depth3_nolastbias": lambda: mlp(3, relu, 2, 0.01),
    "fc_relu_paperE1": lambda: mlp(2, relu, 1, 1),
    "fc_erf_depth2": lambda: mlp(2, Erf(), 1.69, 0.04),
    "fc_gelu_depth2": lambda: mlp(2, Gelu(), 1.69, 0.04),
    "fc_residual": residual_mlp,
    "token_mlp_gap": lambda: readout(
        apply(relu, dense(Input(16, 6), variance=1.44, bias=0.01)).mean()
    ),
    "conv2_gap": lambda: convolutions("same", lambda i: readout(i.mean())),
    "conv2_flatten_circular": lambda: convolutions("circular", lambda i: flatten_readout(i.vector)),
}


@pytest.mark.parametrize("name", NEURAL_TANGENTS)
def test_programs_match_neural_tangents(name: str):
    data = load(f"nt_{name}")
    x = data["x"].movedim(-1, 1) if data["x"].ndim == 4 else data["x"]
    program = Program(NEURAL_TANGENTS[name]())
    torch.testing.assert_close(program.nngp(x), data["nngp"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(program.ntk(x), data["ntk"], rtol=2e-9, atol=2e-9)


RNNS = ["rnn_erf_example_avg", "rnn_erf_example_last", "rnn_erf_nobias_avg"]


@pytest.mark.parametrize("name", RNNS)
def test_recurrent_networks_match_the_reference(name: str):
    data = load(name)
    variances = {
        "variance": float(data["varw"]),
        "input_variance": float(data["varu"]),
        "bias": float(data["varb"]),
    }
    states = recurrent(Input(3, 5), Erf(), **variances)
    state, pool = (states.mean(), "mean") if data["avgpool"] else (states.at(4), "last")
    last = float(data["varv"])
    program = Program(readout(state, variance=last))
    fast = recurrent_kernels(
        data["tokens"],
        Recurrence(Erf(), **variances, readout=last, pool=pool),
        respect_to="weight",
    )
    slow = program.ntk(data["tokens"], respect_to="weight")
    torch.testing.assert_close(slow, data["ntk"], rtol=0, atol=5e-7)
    torch.testing.assert_close(fast.ntk, data["ntk"], rtol=0, atol=5e-7)


def transformer(data: dict[str, Tensor]) -> tuple[Program, Transformer]:
    vu, vw, vv = (float(data[k]) for k in ("vu", "vw", "vv"))
    x: Vector = Input(3, 5)
    for i in range(int(data["depth"])):
        x = transformer_block(x, relu, f"block {i}", key_variance=vu, variance=vw)
    return Program(readout(x.mean(), variance=vv)), Transformer(int(data["depth"]), vu, vw, vv)


@pytest.mark.parametrize("name", ["transformer_example", "transformer_depth2"])
def test_transformers_match_the_reference(name: str):
    data = load(name)
    program, network = transformer(data)
    slow = program.ntk(data["tokens"], respect_to="weight")
    fast = transformer_kernels(data["tokens"], network, respect_to="weight").ntk
    torch.testing.assert_close(slow, data["ntk"], rtol=0, atol=5e-5)
    torch.testing.assert_close(fast, data["ntk"], rtol=0, atol=5e-5)


def test_the_transformer_with_the_references_bug_is_not_matched():
    data = load("transformer_depth2_vu2_REFERENCE_HAS_BUG")
    program, network = transformer(data)
    fast = transformer_kernels(data["tokens"], network, respect_to="weight").ntk
    for kernel in (program.ntk(data["tokens"], respect_to="weight"), fast):
        apart = (kernel - data["ntk"]).norm() / data["ntk"].norm()
        assert 0.2 < apart < 0.3


def in_weights(model: Realised, x: Tensor) -> Tensor:
    """A finite network's kernel in the weights A = σω: each part of that in ω, divided by σ²."""
    total = torch.zeros(len(x), len(x), dtype=x.dtype)
    for matrix, key in model._keys.items():
        model.requires_grad_(False)
        model.weights[key].requires_grad_(True)
        total += empirical_ntk(model, x) / matrix.variance
    return total


def test_finite_networks_decide_against_the_references_bug():
    data = load("transformer_depth2_vu2_REFERENCE_HAS_BUG")
    program, _ = transformer(data)
    x = data["tokens"]
    found = [in_weights(Realised(program, 1024, seed=s), x) for s in range(6)]
    finite = torch.stack(found).mean(0)
    ours = program.ntk(x, respect_to="weight")
    assert (finite - ours).norm() < 0.03 * ours.norm()
    assert (finite - data["ntk"]).norm() > 0.2 * data["ntk"].norm()


@pytest.mark.filterwarnings("ignore:batch norm over fewer than 6")
def test_batch_norm_matches_the_reference_within_its_quadrature():
    # The reference's own quadrature error is 2e-4 relative on the batch of five.
    data = load("batchnorm_relu_depth1")
    a, b = data["inputs"][:7], data["inputs"][7:]
    for x, x2, which in ((a, None, "1"), (b, None, "2"), (a, b, "x")):
        found = batch_normalised_kernels(x, 1, x2, respect_to="weight")
        for kernel, key in (
            (found.nngp, data[f"ker{which}s"][1]),
            (found.ntk, data[f"ntk{which}"]),
        ):
            assert (kernel - key).norm() <= 3e-4 * key.norm()


def test_the_batch_norm_program_matches_the_reference():
    data = load("batchnorm_relu_depth1")
    program = Program(readout(batch_norm_relu(Matrix("W") @ Input(13, 7))))
    kernel = program.ntk(data["inputs"][None, :7], respect_to="weight")[0, 0]
    torch.testing.assert_close(kernel, data["ntk1"], rtol=0, atol=3e-4)


def test_batch_norm_transforms_match_the_converged_reference():
    data, phi = load("batchnorm_vtransform_n40"), BatchNormRectifier(1e-10)
    found = phi.within(data["Sigma"])
    torch.testing.assert_close(found, data["VBNReLU"], rtol=0, atol=5e-9)
    back = phi.within_pull(data["Sigma"], data["Delta"])
    torch.testing.assert_close(back, data["VBNReLUBack"], rtol=0, atol=2e-8)
    data = load("batchnorm_cross_vtransform_n40")
    sides = data["Sigma1"], data["Sigma2"], data["Xi"]
    torch.testing.assert_close(phi.across(*sides), data["VBNReLUCross"], rtol=0, atol=5e-9)
    back = phi.across_pull(*sides, data["Chi"])
    torch.testing.assert_close(back, data["VBNReLUBackCross"], rtol=0, atol=2e-8)


def test_the_worked_example_has_the_papers_diagonal():
    x = torch.randn(5, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernel = Program(mlp(2, Rectifier(), 1, 1)).ntk(x).diagonal()
    torch.testing.assert_close(kernel, 0.75 * x.square().mean(1) + 1.75, rtol=1e-13, atol=0)
