"""Fast kernels equal the programs they stand for, and blocks do not change them."""

import pytest
import torch

from bozzetto.tangent import Erf, Gelu, Input, Matrix, Program, Rectifier, Vector, apply, relu
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
    Layer,
    Recurrence,
    Transformer,
    batch_normalised_kernels,
    convolutional_kernels,
    dense_kernels,
    recurrent_kernels,
    transformer_kernels,
)
from bozzetto.tangent.images import Image, Window
from bozzetto.tangent.pairs import by_blocks

both_conventions = pytest.mark.parametrize("respect_to", ["unit", "weight"])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(fast, program: Program, x, x2=None, respect_to="unit") -> None:
    torch.testing.assert_close(fast.nngp, program.nngp(x, x2), rtol=1e-11, atol=1e-12)
    kernel = program.ntk(x, x2, respect_to=respect_to)
    torch.testing.assert_close(fast.ntk, kernel, rtol=1e-11, atol=1e-12)


@both_conventions
@pytest.mark.parametrize("phi", [relu, Rectifier(0.1), Erf(), Gelu()], ids=str)
def test_dense_chains(phi, respect_to):
    h: Vector = Input(4, 1)
    layers = [Layer(phi, 1.5, 0.2), Layer(phi, 0.8), Layer(phi, 1.1, 0.0)]
    for i, layer in enumerate(layers):
        h = apply(phi, dense(h, str(i), variance=layer.variance, bias=layer.bias))
    program = Program(readout(h, variance=1.3))
    x, x2 = draw(5, 4), draw(3, 4, seed=1)
    for other in (None, x2):
        fast = dense_kernels(x, layers, other, readout=1.3, respect_to=respect_to, block=2)
        same(fast, program, x, other, respect_to)


WINDOWS = {
    "same": Window((3, 3), padding="same"),
    "valid": Window((2, 3), padding="valid"),
    "circular": Window((3, 3), padding="circular"),
    "strided": Window((3, 3), stride=(2, 1), padding=1),
    "dilated": Window((3, 2), padding=(2, 0), dilation=(2, 1)),
}


@pytest.mark.parametrize("pool", ["mean", "flatten"])
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_convolutional_chains(window: Window, pool):
    layers = [Layer(relu, 2.0, 0.1, window), Layer(relu, 1.4, None, Window((2, 2)))]
    image = Image(Input(2, 30), (5, 6))
    for i, layer in enumerate(layers):
        assert layer.window is not None
        image = image.convolve(layer.window, name=f"c{i}", variance=layer.variance, bias=layer.bias)
        image = image.map(apply(relu, image.vector))
    last = readout(image.mean()) if pool == "mean" else flatten_readout(image.vector)
    x, x2 = draw(3, 2, 5, 6), draw(2, 2, 5, 6, seed=1)
    same(convolutional_kernels(x, layers, x2, pool=pool, block=2), Program(last), x, x2)


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_a_window_is_torchs_convolution(window: Window):
    x, weight = draw(1, 1, 5, 6), draw(1, 1, *window.kernel, seed=1)
    shifts = torch.stack(list(window.shifts((5, 6))))
    ours = torch.einsum("k,kst,t->s", weight.flatten(), shifts, x.flatten())
    padding, mode = window.padding, "zeros"
    if padding == "circular":
        padding, mode = "same", "circular"
    conv = torch.nn.Conv2d(
        1, 1, window.kernel, window.stride, padding, window.dilation,
        bias=False, padding_mode=mode, dtype=torch.float64,
    )  # fmt: skip
    conv.weight.data.copy_(weight)
    theirs = conv(x)
    assert window.output((5, 6)) == tuple(theirs.shape[2:])
    torch.testing.assert_close(ours, theirs.flatten())


def test_a_window_may_be_longer_than_the_other_side_of_the_image():
    window = Window((1, 6))
    assert window.axis(5, 0).shape == (1, 5)
    x, h = draw(3, 2, 5, 6), Image(Input(2, 30), (5, 6)).convolve(window)
    program = Program(readout(h.map(apply(relu, h.vector)).mean()))
    same(convolutional_kernels(x, [Layer(relu, window=window)]), program, x, None)


@both_conventions
@pytest.mark.parametrize("pool", ["mean", "last"])
def test_recurrent_networks(pool, respect_to):
    states = recurrent(Input(4, 5), relu, variance=1.3, input_variance=0.7, bias=0.2)
    program = Program(readout(states.mean() if pool == "mean" else states.at(4), variance=1.7))
    network = Recurrence(relu, 1.3, 0.7, 0.2, 1.7, pool)
    x, x2 = draw(3, 5, 4), draw(2, 5, 4, seed=1)
    same(recurrent_kernels(x, network, x2, respect_to=respect_to), program, x, x2, respect_to)


def test_sequences_of_different_lengths_meet_at_their_ends():
    network = Recurrence(Erf(), 1.2, 0.8, None, pool="last")
    x = draw(2, 4, 3)
    longer = torch.cat([torch.zeros(2, 2, 3, dtype=torch.float64), x], 1)
    ours, padded = (recurrent_kernels(v, network, longer) for v in (x, longer))
    torch.testing.assert_close(ours.ntk, padded.ntk)


@both_conventions
def test_transformers(respect_to):
    x: Vector = Input(4, 5)
    for i in range(2):
        x = transformer_block(x, relu, str(i), key_variance=1.6, variance=0.7)
    program = Program(readout(x.mean(), variance=1.2))
    a, b = draw(3, 5, 4), draw(2, 5, 4, seed=1)
    fast = transformer_kernels(a, Transformer(2, 1.6, 0.7, 1.2), b, respect_to=respect_to)
    same(fast, program, a, b, respect_to)


@both_conventions
def test_batch_norm_within_a_batch(respect_to):
    h: Vector = Input(8, 6)
    for i in range(2):
        h = batch_norm_relu(Matrix(str(i), 1.7) @ h)
    program, x = Program(readout(h, variance=1.2)), draw(1, 6, 8)
    fast = batch_normalised_kernels(x[0], 2, variance=1.7, readout=1.2, respect_to=respect_to)
    kernel = program.ntk(x, respect_to=respect_to)[0, 0]
    torch.testing.assert_close(fast.ntk, kernel, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(fast.nngp, program.nngp(x)[0, 0], rtol=1e-9, atol=1e-10)


def test_batch_norm_between_batches():
    program = Program(readout(batch_norm_relu(Matrix("W") @ Input(8, 6))))
    x, x2 = draw(1, 6, 8), draw(1, 6, 8, seed=1)
    fast = batch_normalised_kernels(x[0], 1, x2[0], tolerance=1e-5)
    torch.testing.assert_close(fast.ntk, program.ntk(x, x2)[0, 0], rtol=1e-4, atol=1e-5)


def test_pushing_is_the_adjoint_of_pulling():
    joint = draw(13, 20) @ draw(13, 20).T / 20
    left, right, cross = joint[:7, :7], joint[7:, 7:], joint[:7, 7:]
    phi = BatchNormRectifier(1e-6)
    a, b = draw(7, 7, seed=2), draw(7, 7, seed=3)
    a, b = a + a.T, b + b.T
    pulled, pushed = phi.within_pull(left, a), phi.within_push(left, b)
    torch.testing.assert_close((pulled * b).sum(), (pushed * a).sum(), rtol=1e-11, atol=1e-11)
    a, b = draw(7, 6, seed=2), draw(7, 6, seed=3)
    pulled = phi.across_pull(left, right, cross, a)
    pushed = phi.across_push(left, right, cross, b)
    torch.testing.assert_close((pulled * b).sum(), (pushed * a).sum(), rtol=1e-11, atol=1e-11)


def test_batch_norm_pulls_gradients_as_its_jacobian_does_on_average():
    cov = draw(8, 20) @ draw(8, 20).T / 20
    gradient = torch.zeros(8, 8, dtype=torch.float64)
    gradient[0, 0] = 1.0
    z = (draw(100_000, 8, seed=1) @ torch.linalg.cholesky(cov).T).requires_grad_()
    phi = BatchNormRectifier()
    (j,) = torch.autograd.grad(phi(z)[:, 0].sum(), z)
    values = j[:, :, None] * j[:, None, :]
    error = values.mean(0) - phi.within_pull(cov, gradient)
    assert (error.abs() <= 5 * values.std(0) / len(z) ** 0.5).all()


def test_the_stated_error_of_the_quadrature_covers_the_true_one():
    cov = draw(7, 20) @ draw(7, 20).T / 20
    gradient, exact = torch.ones(7, 7, dtype=torch.float64).tril(), BatchNormRectifier(1e-12)
    for tolerance in (1e-3, 1e-5):
        phi = BatchNormRectifier(tolerance)
        true = (phi.within_pull(cov, gradient) - exact.within_pull(cov, gradient)).abs().max()
        assert true <= 2 * phi.error(cov, gradient) < 100 * tolerance


def test_small_batches_warn_and_tiny_ones_are_refused():
    with pytest.warns(UserWarning, match="fewer than 6"):
        batch_normalised_kernels(draw(5, 8), 1)
    with (
        pytest.warns(UserWarning, match="fewer than 6"),
        pytest.raises(ValueError, match="at least 4"),
    ):
        batch_normalised_kernels(draw(3, 8), 1)


def test_float32_stays_float32_and_near():
    x, layers = draw(40, 6), [Layer(relu, 2.0, 0.1)] * 3
    fast = dense_kernels(x.float(), layers)
    assert fast.ntk.dtype == torch.float32
    torch.testing.assert_close(
        fast.ntk.double(), dense_kernels(x, layers).ntk, rtol=2e-3, atol=2e-3
    )


def test_blocks_report_progress_and_cover_everything():
    seen: list[float] = []
    x = draw(7, 3)
    kernel = by_blocks(lambda a, b: a @ b.T, x, None, 3, seen.append)
    torch.testing.assert_close(kernel, x @ x.T)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_wrong_inputs_are_named():
    with pytest.raises(ValueError, match="equal features"):
        dense_kernels(draw(3, 4), [Layer(relu)], draw(3, 5))
    with pytest.raises(ValueError, match="needs a window"):
        convolutional_kernels(draw(2, 3, 4, 4), [Layer(relu)])
    with pytest.raises(ValueError, match="does not fit"):
        convolutional_kernels(draw(2, 3, 4, 4), [Layer(relu, window=Window((5, 5)))])


def test_batch_norm_takes_single_precision():
    x = draw(8, 5)
    exact, found = (batch_normalised_kernels(v, 2) for v in (x, x.float()))
    assert found.ntk.dtype == torch.float32
    torch.testing.assert_close(found.ntk.double(), exact.ntk, rtol=1e-5, atol=1e-5)
    program = Program(readout(batch_norm_relu(Matrix("W") @ Input(5, 8))), dtype=torch.float32)
    kernel = program.ntk(x[None])[0, 0].double()
    torch.testing.assert_close(kernel, batch_normalised_kernels(x, 1).ntk, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="span 3 directions"):
        batch_normalised_kernels(torch.ones(8, 5), 1)


def test_names_that_do_not_exist_are_refused():
    x, sequences, images = draw(3, 4), draw(2, 3, 4), draw(2, 3, 4, 4)
    chain = [Layer(relu, window=Window((3, 3)))]
    with pytest.raises(ValueError, match="respect_to is"):
        dense_kernels(x, [Layer(relu)], respect_to="units")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pool is"):
        convolutional_kernels(images, chain, pool="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pool is"):
        Recurrence(relu, pool="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="equal features"):
        recurrent_kernels(sequences, Recurrence(relu), draw(2, 3, 5))
    with pytest.raises(ValueError, match="at least 1"):
        Window((3, 3), stride=(0, 1))
