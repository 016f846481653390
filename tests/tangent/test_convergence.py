"""Finite networks approach their limits, at the rate 1/√n; sketched ones reach the dense limit."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bozzetto.nn import SketchLinear
from bozzetto.tangent import (
    Erf,
    Input,
    Matrix,
    Program,
    Realised,
    Vector,
    apply,
    empirical_ntk,
    relu,
)
from bozzetto.tangent.blocks import (
    batch_norm_relu,
    dense,
    gated,
    layer_norm,
    readout,
    recurrent,
    sketched,
    transformer_block,
)
from bozzetto.tangent.fast import Layer, dense_kernels
from bozzetto.tangent.images import Image, Window


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mlp() -> Vector:
    h: Vector = Input(5, 1)
    for i in range(2):
        h = apply(relu, dense(h, str(i), variance=2, bias=0.1))
    return readout(h)


def cnn() -> Vector:
    image = Image(Input(3, 9), (3, 3))
    for i in range(2):
        image = image.convolve(Window((3, 3), padding="same"), name=str(i), variance=2, bias=0.1)
        image = image.map(apply(relu, image.vector))
    return readout(image.mean())


NETWORKS: dict[str, tuple[Callable[[], Vector], tuple[int, ...]]] = {
    "mlp": (mlp, (3, 1, 5)),
    "cnn": (cnn, (2, 9, 3)),
    "rnn": (
        lambda: readout(recurrent(Input(3, 4), Erf(), input_variance=2, bias=0.2).mean()),
        (2, 4, 3),
    ),
    "transformer": (lambda: readout(transformer_block(Input(3, 4), relu).mean()), (2, 4, 3)),
    "batch norm": (lambda: readout(batch_norm_relu(Matrix("W") @ Input(10, 8))), (1, 8, 10)),
}


def errors(program: Program, x: Tensor, width: int, seeds: int) -> Tensor:
    """Relative Frobenius distances of finite kernels from the limit."""
    limit = program.ntk(x)
    each = "each" if limit.ndim == 4 else "mean"
    found = [empirical_ntk(Realised(program, width, seed=s), x, outputs=each) for s in range(seeds)]
    return torch.stack([(k - limit).norm() / limit.norm() for k in found])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_error_falls_like_one_over_the_root_of_the_width(name: str):
    build, shape = NETWORKS[name]
    program, x = Program(build()), draw(*shape)
    small, large = errors(program, x, 64, 16), errors(program, x, 1024, 8)
    slope = (large.mean().log() - small.mean().log()) / math.log(16)
    spread = ((small.std() / small.mean()) ** 2 / 16 + (large.std() / large.mean()) ** 2 / 8).sqrt()
    assert abs(slope + 0.5) <= 0.1 + 2 * spread / math.log(16)
    assert large.mean() < 0.15


def test_programs_with_norms_and_gates_can_be_realised_too():
    normed = Program(readout(layer_norm(apply(relu, dense(Input(3, 4)))).mean()))
    x = draw(2, 4, 3)
    assert errors(normed, x, 1024, 3).mean() < 0.1
    gru = Program(readout(gated(Input(3, 4)).at(3)))
    limit = gru.ntk(x, samples=4000)
    found = torch.stack([empirical_ntk(Realised(gru, 512, seed=s), x) for s in range(6)]).mean(0)
    assert (found - limit).norm() / limit.norm() < 0.15


def test_a_width_without_a_number_is_refused():
    program = Program(readout(sketched(apply(relu, dense(Input(5, 1))))))
    with pytest.raises(ValueError, match="'n/k'"):
        Realised(program, 16)
    assert Realised(program, {"n": 16, "n/k": 4})(draw(2, 5)).shape == (2, 1)


def test_with_a_growing_core_sketched_networks_approach_the_dense_limit_with_a_fixed_one_not():
    x = draw(3, 5)

    def network(layer: Callable[[Vector], Vector]) -> Program:
        h = apply(relu, dense(Input(5, 1), "in", variance=2))
        return Program(readout(apply(relu, layer(h))))

    limit = network(lambda h: dense(h, variance=2)).ntk(x)

    def error(n: int, k: int) -> Tensor:
        program = network(lambda h: sketched(h, variance=2, kept=k / n))
        nets = (Realised(program, {"n": n, "n/k": k}, seed=s) for s in range(12))
        found = [(empirical_ntk(net, x) - limit).norm() / limit.norm() for net in nets]
        return torch.stack(found).mean()

    growing = error(64, 16), error(1024, 256)
    fixed = error(64, 8), error(1024, 8)
    assert growing[1] < 0.45 * growing[0]
    assert fixed[1] > 0.55 * fixed[0]
    assert fixed[1] > 2 * growing[1]


class Unit(nn.Module):
    """A layer whose weights are standard normal and multiplied by σ where they are used."""

    def __init__(self, layer: nn.Module, factor: float, generator: torch.Generator) -> None:
        super().__init__()
        self.layer, self.factor = layer, factor
        with torch.no_grad():
            for p in layer.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.layer(x)


@pytest.mark.parametrize("family", ["sign", "fold"])
def test_the_librarys_sketched_layer_has_the_dense_limit(family: str):
    n, k, x = 1024, 200, draw(3, 5)
    limit = dense_kernels(x, [Layer(relu, 2.0)] * 2).ntk
    found = []
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        middle = SketchLinear(
            n, n, k, bias=False, terms=2, family=family, seed=seed, dtype=torch.float64
        )
        model = nn.Sequential(
            Unit(nn.Linear(5, n, bias=False, dtype=torch.float64), (2 / 5) ** 0.5, g),
            nn.ReLU(),
            Unit(middle, (2 / n) ** 0.5, g),
            nn.ReLU(),
            Unit(nn.Linear(n, 1, bias=False, dtype=torch.float64), n**-0.5, g),
        )
        found.append(empirical_ntk(model, x))
    mean = torch.stack(found).mean(0)
    assert (mean - limit).norm() / limit.norm() < 0.08
    assert abs(float(mean.trace() / limit.trace()) - 1) < 0.08
