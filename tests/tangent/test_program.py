"""Programs: rules against sampling, the check, tied weights, and errors that name the use."""

import math

import pytest
import torch

from bozzetto.tangent import (
    Bias,
    Erf,
    Exp,
    HermiteSeries,
    Input,
    Matrix,
    Program,
    Quadrature,
    Vector,
    add,
    apply,
    relu,
    stack,
)
from bozzetto.tangent.blocks import (
    attention,
    causal,
    dense,
    gated,
    layer_norm,
    readout,
    recurrent,
    residual,
    sketched,
    transformer_block,
)
from bozzetto.tangent.images import Image, Window


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def tied() -> Vector:
    """The same hidden matrix twice, with a skip around it."""
    w = Matrix("W", 1.5)
    u = dense(Input(4, 1), "first", bias=0.1)
    return readout(apply(relu, w @ apply(relu, w @ apply(relu, u) + u)))


def skip_around_a_nonlinearity() -> Vector:
    h = dense(Input(4, 1), variance=2, bias=0.1)
    return readout(apply(relu, dense(h + apply(relu, h), "second")))


def two_nonlinearities() -> Vector:
    h = dense(Input(4, 1), "first")
    h = apply(relu, h) + apply(Quadrature(torch.tanh), h)
    return readout(apply(Erf(), dense(h, "second")))


def shared_bias() -> Vector:
    b = Bias("n", 1, "b", 0.5)
    h = apply(relu, Matrix("U") @ Input(4, 1) + b)
    return readout(apply(relu, Matrix("W") @ h + b))


def normed_and_attending() -> Vector:
    x = layer_norm(apply(relu, dense(Input(4, 3), "in", bias=0.1)))
    k = Matrix("K", 1.5) @ x
    y = attention(k, k, Matrix("V") @ x, scale=0.7, weights=causal)
    return readout(apply(relu, dense(residual(k, lambda _: y), "out")).mean())


EXACT = {
    "tied weights": (tied, 1),
    "skip around a nonlinearity": (skip_around_a_nonlinearity, 1),
    "two nonlinearities": (two_nonlinearities, 1),
    "a bias used twice": (shared_bias, 1),
    "recurrent": (lambda: readout(recurrent(Input(4, 3), relu, bias=0.1).mean()), 3),
    "norm and attention": (normed_and_attending, 3),
    "transformer": (lambda: readout(transformer_block(Input(4, 3), relu).mean()), 3),
}


@pytest.mark.parametrize(("build", "positions"), EXACT.values(), ids=EXACT)
def test_exact_rules_agree_with_the_sampled_full_rule(build, positions):
    program, x = Program(build()), draw(3, positions, 4)
    for kernel in (program.nngp, program.ntk):
        exact = kernel(x)
        draws = torch.stack([kernel(x, samples=2000, seed=s) for s in range(6)])
        error, spread = draws.mean(0) - exact, draws.std(0) / len(draws) ** 0.5
        assert (error.abs() <= 6 * spread + 0.01 * exact.abs().max()).all()
        assert relative(draws.mean(0), exact) < 0.06


def test_kernels_of_two_sets_are_blocks_of_the_whole():
    program, x = Program(tied()), draw(7, 4)
    whole = program.ntk(x, block=3)
    torch.testing.assert_close(whole, whole.T)
    torch.testing.assert_close(program.ntk(x[:3], x[3:], block=2), whole[:3, 3:])
    torch.testing.assert_close(program.nngp(x[:3], x[3:]), program.nngp(x)[:3, 3:])
    found = program.ntk(x[:3], x[3:], samples=4000, seed=1)
    assert relative(found, whole[:3, 3:]) < 0.1


def finite_width(build, x: torch.Tensor, n: int, seeds: int) -> torch.Tensor:
    """The empirical kernel of weights of width n: build(draw matrix) -> f(x, parameters)."""
    total = torch.zeros(len(x), len(x), dtype=torch.float64)
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        f, parameters = build(n, generator)
        rows = []
        for one in x:
            grads = torch.autograd.grad(f(one, *parameters), parameters)
            rows.append(torch.cat([g.flatten() for g in grads]))
        j = torch.stack(rows)
        total += j @ j.T / seeds
    return total


def test_a_network_with_tied_weights_approaches_its_limit():
    def build(n, generator):
        def new(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

        def f(x, u, b, w, v):
            first = u @ x / 2 + math.sqrt(0.1) * b
            w = w * math.sqrt(1.5 / n)
            return v @ (w @ (w @ first.relu() + first).relu()).relu() / math.sqrt(n)

        return f, [new(n, 4), new(n), new(n, n), new(n)]

    x = draw(3, 4)
    found = finite_width(build, x, 500, 12)
    assert relative(found, Program(tied()).ntk(x)) < 0.05


def test_a_readout_that_is_a_mean_needs_the_full_rule():
    # Under independence the first layer's kernel would be 1/2 |x|²/d; the truth is 1/2 + 1/π.
    w = [Matrix("W1", 2.0), Matrix("W2", 2.0, trained=False)]
    h = apply(relu, w[1] @ apply(relu, w[0] @ Input(4, 1)))
    mean = Matrix("average", variance=0.0, mean=1.0, rows=1, trained=False)
    program, x = Program(mean @ h), draw(1, 4)
    with pytest.raises(ValueError, match="'average' has mean"):
        program.ntk(x)
    draws = torch.stack(
        [program.ntk(x, samples=4000, seed=s, respect_to="weight") for s in range(12)]
    )
    limit = (0.5 + 1 / math.pi) * x.square().mean()
    error = (draws.mean() - limit).abs()
    assert error <= 5 * draws.std() / 12**0.5 + 0.005 * limit
    assert error < 0.1 * limit / math.pi
    with pytest.raises(ValueError, match="grows with width"):
        program.nngp(x)


def test_the_papers_counterexample_has_its_doubled_gradient():
    # f = Σ h²/√n with h = W x: E (dx)² is 8 by the full rule and 4 by independence.
    b = Bias("n", 1, "x", 1.0)
    start = Matrix("U", 1e-12) @ Input(1, 1)
    h = Matrix("W", trained=False) @ (start + b)
    program = Program(Matrix("v", 0.0, mean=1.0, rows=1) @ apply(torch.square, h))
    draws = torch.stack([program.ntk(torch.ones(1, 1), samples=20_000, seed=s) for s in range(10)])
    assert (draws.mean() - 8).abs() <= 5 * draws.std() / 10**0.5 + 0.02


def test_a_matrix_and_its_transpose_remember_each_other():
    # Aᵀ A v has covariance 2 with itself where fresh matrices would give 1, and 1 with v.
    a, v = Matrix("A"), Matrix("v") @ Input(4, 1)
    x = draw(2, 4)
    both, fresh = (readout(add(m.T @ (a @ v), v)) for m in (a, Matrix("B")))
    inner = x @ x.T / 4
    torch.testing.assert_close(Program(both).nngp(x), 5 * inner)
    torch.testing.assert_close(Program(fresh).nngp(x), 2 * inner)
    nonlinear = Program(readout(a.T @ apply(relu, a @ v)))
    draws = torch.stack([nonlinear.nngp(x, samples=4000, seed=s) for s in range(8)])
    error = draws.mean(0) - nonlinear.nngp(x)
    assert (error.abs() <= 6 * draws.std(0) / 8**0.5 + 0.005).all()
    with pytest.raises(ValueError, match="'A' is used together with its transpose"):
        nonlinear.ntk(x)


def test_a_readout_tied_to_a_hidden_matrix_is_refused_by_name():
    w = Matrix("embedding")
    h = apply(relu, w @ apply(relu, dense(Input(4, 1))))
    for samples in (None, 1000):
        with pytest.raises(ValueError, match="readout 'embedding' is also used inside"):
            Program(w @ h).ntk(draw(2, 4), samples=samples)


def test_a_readout_that_goes_back_is_refused_by_name():
    v = Matrix("v") @ apply(relu, dense(Input(4, 1)))
    with pytest.raises(ValueError, match=r"'v' is also used|goes back into the network"):
        Program(v + Matrix("w") @ apply(relu, v)).ntk(draw(2, 4))


def test_an_output_that_is_not_a_readout_is_refused():
    with pytest.raises(ValueError, match="not a readout"):
        Program(apply(relu, dense(Input(4, 1)))).ntk(draw(2, 4))


def test_exponential_growth_has_an_nngp_but_no_tangent_kernel():
    program = Program(readout(apply(Exp(2.0), dense(Input(4, 1)))))
    x = draw(2, 4)
    inner = x @ x.T / 4
    p = inner.diagonal()
    exact = ((p[:, None] + 2 * inner + p) / 8).exp()
    torch.testing.assert_close(program.nngp(x), exact)
    with pytest.raises(ValueError, match="grows exponentially"):
        program.ntk(x)
    for phi in (Quadrature(torch.exp), HermiteSeries(torch.sinh)):
        with pytest.raises(ValueError, match="grows exponentially"):
            Program(readout(apply(phi, dense(Input(4, 1))))).ntk(x)


def test_exponential_growth_is_noticed_in_any_function_and_argument():
    h = dense(Input(4, 3))
    plain = Program(readout(apply(torch.exp, h, name="plain").mean()))
    second = Program(readout(apply(lambda a, b: a.tanh() * b.exp(), h, h, name="second").mean()))
    for program, name in ((plain, "plain"), (second, "second")):
        with pytest.raises(ValueError, match=f"{name} grows exponentially"):
            program.ntk(draw(2, 3, 4), samples=64)
    fine = Program(readout(apply(lambda a, b: a * b.sigmoid(), h, h).mean()))
    assert fine.violations() == []


def test_widths_that_do_not_fit_are_refused():
    x = Input(4, 1)
    with pytest.raises(ValueError, match="one width"):
        add(dense(x, width="n"), dense(x, width="m"))
    with pytest.raises(ValueError, match="goes to infinity"):
        apply(relu, dense(x, width=16))
    with pytest.raises(ValueError, match="follows a layer of fixed width 16"):
        Program(readout(dense(dense(x, width=16), "after")))
    w = Matrix("W")
    with pytest.raises(ValueError, match="W is applied to widths"):
        Program(readout(w @ dense(x) + w @ x))
    with pytest.raises(ValueError, match="only a readout may have a mean"):
        Program(readout(Matrix("W", mean=1.0) @ x))
    with pytest.raises(ValueError, match=r"W\.T multiplies"):
        _ = Matrix("W", rows="m").T @ dense(x)
    with pytest.raises(ValueError, match="equal positions"):
        add(dense(Input(4, 2)), dense(Input(4, 3)))
    with pytest.raises(ValueError, match="exactly one Input"):
        Program(readout(dense(Input(4, 1)) + dense(Input(4, 1))))


def test_inputs_of_another_dimension_are_refused():
    program = Program(readout(dense(Input(4, 1))))
    with pytest.raises(ValueError, match="4 features; got"):
        program.ntk(draw(2, 5))
    with pytest.raises(ValueError, match="4 features; got"):
        program.ntk(draw(2, 4), draw(2, 5))


def test_what_exact_rules_cannot_do_is_named_and_sampled():
    nested = Program(readout(apply(relu, apply(torch.tanh, dense(Input(4, 1))))))
    pooled = Image(dense(Input(4, 9)), (3, 3)).largest(Window((2, 2)))
    gru = Program(readout(gated(Input(4, 3)).at(2)))
    for program, positions, name in (
        (nested, 1, "tanh|Rectifier"),
        (Program(readout(pooled.mean())), 9, "max pooling"),
        (gru, 3, "gru"),
    ):
        x = draw(2, positions, 4)
        with pytest.raises(NotImplementedError, match=name):
            program.nngp(x)
        pair = [program.ntk(x, samples=2000, seed=s) for s in range(2)]
        assert relative(pair[0], pair[1]) < 0.25


def test_a_sampled_gru_is_a_wide_gru():
    n, x = 200, draw(3, 3, 4)
    program = Program(readout(gated(Input(4, 3), variance=1.0, bias=0.01).at(2)))
    outputs = []
    for seed in range(80):
        g = torch.Generator().manual_seed(seed)
        cell = torch.nn.GRU(4, n, batch_first=True, dtype=torch.float64)
        with torch.no_grad():
            for name, p in cell.named_parameters():
                scale = 0.5 if "weight_ih" in name else n**-0.5
                scale = {"bias_ih_l0": 0.1, "bias_hh_l0": 0.0}.get(name, scale)
                p.copy_(scale * torch.randn(p.shape, generator=g, dtype=torch.float64))
            h = cell(x)[0][:, -1]
        outputs.append(h @ h.T / n)
    draws = torch.stack(outputs)
    limit = torch.stack([program.nngp(x, samples=2000, seed=s) for s in range(6)])
    error = draws.mean(0) - limit.mean(0)
    spread = (draws.var(0) / len(draws) + limit.var(0) / len(limit)).sqrt()
    assert (error.abs() <= 5 * spread + 0.01 * limit.mean(0).max()).all()


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="at least 40 samples"):
        Program(tied()).nngp(draw(20, 4), samples=30)


@pytest.mark.parametrize(("terms", "kept"), [(1, 0.25), (3, 0.1)])
def test_a_sketched_network_has_the_tangent_kernel_of_the_dense_one(terms, kept):
    x = draw(4, 5)

    def network(layer) -> Program:
        h = apply(relu, dense(Input(5, 1), "in", variance=2))
        for i in range(2):
            h = apply(relu, layer(h, f"hidden{i}"))
        return Program(readout(h))

    plain = network(lambda h, name: dense(h, name, variance=2, bias=0.1))
    small = network(lambda h, name: sketched(h, name, variance=2, bias=0.1, terms=terms, kept=kept))
    torch.testing.assert_close(small.nngp(x), plain.nngp(x))
    torch.testing.assert_close(small.ntk(x), plain.ntk(x))
    averaged = network(
        lambda h, name: sketched(
            h, name, variance=2 * 2 * terms, terms=terms, kept=kept, multiplier=1 / (2 * terms)
        )
    )
    no_bias = network(lambda h, name: dense(h, name, variance=2))
    torch.testing.assert_close(averaged.nngp(x), no_bias.nngp(x))
    ratio = (
        averaged.ntk(x, respect_to="weight").trace() / no_bias.ntk(x, respect_to="weight").trace()
    )
    assert ratio < 0.9


def test_deep_programs_do_not_exhaust_the_stack():
    states = recurrent(Input(2, 60), Erf(), bias=0.1)
    kernel = Program(readout(states.at(59))).ntk(draw(2, 60, 2))
    assert kernel.isfinite().all()
    assert stack([states.at(0), states.at(1)]).positions == 2
