"""Ready blocks: the usual layers written in the language of programs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bozzetto.tangent.activation import Activation
from bozzetto.tangent.batchnorm import BatchNormRectifier
from bozzetto.tangent.program import (
    Bias,
    Linear,
    Matrix,
    Moment,
    Nonlinear,
    Ones,
    Product,
    Vector,
    add,
    apply,
    stack,
)


def dense(
    x: Vector,
    name: str = "dense",
    *,
    variance: float = 1.0,
    bias: float | None = None,
    width: str | int = "n",
) -> Vector:
    """W x + b with entries of W of variance `variance`/n and of b of variance `bias`."""
    product = Matrix(name, variance, rows=width) @ x
    return product if bias is None else product + Bias(width, 1, f"{name}.bias", bias)


def readout(x: Vector, name: str = "readout", *, variance: float = 1.0) -> Product:
    """v·x, one scalar a position; pool positions first (`x.mean()`, `x.at(-1)`) for one output."""
    return Matrix(name, variance, rows=1) @ x


def flatten_readout(x: Vector, name: str = "readout", *, variance: float = 1.0) -> Linear:
    """Σ_s v_s·x_s/√P: a readout of all positions together, with its own weights for each."""
    gain = x.positions**-0.5
    parts = [Matrix(f"{name}[{s}]", variance, gain, rows=1) @ x.at(s) for s in range(x.positions)]
    return add(*parts)


def layer_norm(x: Vector, *, eps: float = 0.0) -> Linear:
    """(x − mean)/√(var + ε) over coordinates: mean and variance are scalars that converge."""
    one = Ones(x.width, 1)

    def scale(square: Tensor, mean: Tensor) -> Tensor:
        variance = square.diagonal(dim1=-2, dim2=-1) - mean[..., 0] ** 2
        return (variance + eps).rsqrt().diag_embed()

    def shift(square: Tensor, mean: Tensor) -> Tensor:
        return -(scale(square, mean) @ mean)

    pairs = ((x, x), (x, one))
    return Linear(
        x.width, x.positions, ((Moment(scale, pairs, "norm"), x), (Moment(shift, pairs), one))
    )


def softmax(logits: Tensor) -> Tensor:
    """The usual attention weights, over the last axis."""
    return logits.softmax(-1)


def causal(logits: Tensor) -> Tensor:
    """Softmax over the positions up to one's own."""
    mask = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
    return logits.masked_fill(~mask, -torch.inf).softmax(-1)


def attention(
    query: Vector,
    key: Vector,
    value: Vector,
    *,
    scale: float = 1.0,
    weights: Callable[[Tensor], Tensor] = softmax,
) -> Linear:
    """Σ_s weights(scale · ⟨q_t, k_s⟩/n)_{ts} v_s: logits divided by n converge to scalars.

    With independent query and key matrices the logits vanish and attention is uniform: the limit
    is interesting for tied or correlated ones. (Logits divided by √n stay random, and need
    infinitely many heads; that is another theory.)
    """

    def mixing(logits: Tensor) -> Tensor:
        return weights(scale * logits)

    return value.mix(Moment(mixing, ((query, key),), "attention"), query.positions)


def transformer_block(
    x: Vector,
    activation: Activation,
    name: str = "block",
    *,
    key_variance: float = 1.0,
    variance: float = 1.0,
    bias: float | None = None,
    scale: float = 1.0,
    weights: Callable[[Tensor], Tensor] = softmax,
) -> Vector:
    """Tied attention, then feed-forward, each with skip and norm (arXiv 2006.14548, E.3)."""
    k = Matrix(f"{name}.key", key_variance) @ x
    z = layer_norm(attention(k, k, k, scale=scale, weights=weights) + k)
    g = dense(z, f"{name}.in", variance=variance, bias=bias)
    h = dense(apply(activation, g), f"{name}.out", variance=variance, bias=bias)
    return layer_norm(h + z)


def recurrent(
    x: Vector,
    activation: Activation,
    name: str = "rnn",
    *,
    variance: float = 1.0,
    input_variance: float = 1.0,
    bias: float | None = None,
) -> Linear:
    """s_t = φ(W s_{t−1} + U x_t + b) from s₀ = 0: all states, one a position."""
    w = Matrix(name, variance)
    inputs = Matrix(f"{name}.input", input_variance) @ x
    shift = None if bias is None else Bias("n", 1, f"{name}.bias", bias)
    states: list[Vector] = []
    for t in range(x.positions):
        terms: list[Vector] = [inputs.at(t)]
        if states:
            terms.append(w @ states[-1])
        if shift is not None:
            terms.append(shift)
        states.append(apply(activation, add(*terms)))
    return stack(states)


def gated(
    x: Vector,
    name: str = "gru",
    *,
    variance: float = 1.0,
    input_variance: float = 1.0,
    bias: float = 1.0,
    gate: Callable[[Tensor], Tensor] = torch.sigmoid,
    activation: Callable[[Tensor], Tensor] = torch.tanh,
) -> Linear:
    """A GRU as torch's: all states, one a position. Products of gates: for sampled kernels."""

    def layer(part: str) -> tuple[Matrix, Vector, Bias]:
        inputs = Matrix(f"{name}.{part}.input", input_variance) @ x
        return Matrix(f"{name}.{part}", variance), inputs, Bias("n", 1, f"{name}.{part}.b", bias)

    reset, update, new = layer("reset"), layer("update"), layer("new")

    def step(r: Tensor, z: Tensor, inside: Tensor, state: Tensor, old: Tensor) -> Tensor:
        z = gate(z)
        return (1 - z) * activation(inside + gate(r) * state) + z * old

    def begin(z: Tensor, inside: Tensor) -> Tensor:
        return (1 - gate(z)) * activation(inside)

    states: list[Vector] = []
    for t in range(x.positions):
        r, z, n = (inputs.at(t) + shift for _, inputs, shift in (reset, update, new))
        if not states:
            states.append(apply(begin, z, n, name="gru"))
            continue
        old = states[-1]
        r, z, inner = r + reset[0] @ old, z + update[0] @ old, new[0] @ old
        states.append(apply(step, r, z, n, inner, old, name="gru"))
    return stack(states)


def batch_norm_relu(x: Vector, *, tolerance: float = 1e-8) -> Nonlinear:
    """relu(batchnorm(x)), the positions being the members of the batch."""
    return apply(BatchNormRectifier(tolerance), x, name="batch norm")


def sketched(
    x: Vector,
    name: str = "sketch",
    *,
    variance: float = 1.0,
    bias: float | None = None,
    terms: int = 1,
    kept: float = 0.25,
    multiplier: float | None = None,
    width: str = "n",
) -> Vector:
    """The sketched layer, multiplier · Σᵢ (U1ᵢᵀ S1ᵢ x + S2ᵢ U2ᵢ x), k = kept · n → ∞.

    U is drawn once, entries of variance 1/k, and not trained; S has the dense layer's variance.
    With the default multiplier 1/√(2·terms) forward and tangent kernels are the dense layer's.
    """
    gain = (2 * terms) ** -0.5 if multiplier is None else multiplier
    core = f"{width}/k"
    parts: list[Vector] = []
    for i in range(terms):
        inner = Matrix(f"{name}.S1[{i}]", variance, rows=core) @ x
        parts.append(Matrix(f"{name}.U1[{i}]", rows=width, trained=False) @ inner)
        down = Matrix(f"{name}.U2[{i}]", gain=kept**-0.5, rows=core, trained=False) @ x
        parts.append(Matrix(f"{name}.S2[{i}]", variance, gain=kept**0.5, rows=width) @ down)
    total = gain * add(*parts)
    return total if bias is None else total + Bias(width, 1, f"{name}.bias", bias)


def residual(x: Vector, *branches: Callable[[Vector], Vector]) -> Linear:
    """The sum x + Σ branch(x)."""
    return add(x, *(branch(x) for branch in branches))
