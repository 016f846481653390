"""Every route to a finite network's kernel agrees with gradients taken one by one."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import cg, eigsh
from torch import Tensor, nn

from bozzetto.tangent.empirical import TangentOperator, empirical_ntk, probed_ntk
from bozzetto.tangent.empirical.parts import Outer, inner


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Twice(nn.Module):
    """A module used twice, and a parameter that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = nn.Linear(4, 4), nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        return (self.inner(self.inner(x).tanh()) * self.scale).tanh()


class Sums(nn.Module):
    """Positions, averaged."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class TiedHead(nn.Module):
    """An embedding whose table is also the output layer's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 3), nn.Linear(3, 7)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x).tanh().mean(1))


class LastState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Outside(nn.Module):
    """A layer whose weight is used both by the layer and without it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).tanh() @ self.layer.weight


def words(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 7, shape, generator=torch.Generator().manual_seed(seed))


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3, padding="same", dilation=2, groups=2, padding_mode="circular"),
        nn.GroupNorm(2, 6),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


def tokens() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(7, 4, padding_idx=0), nn.LayerNorm(4), Twice(), Sums(), nn.Linear(4, 2)
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), draw, (4,)),
    "convnet": (convnet, draw, (2, 6, 6)),
    "one-dimensional": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)),
        draw,
        (2, 6),
    ),
    "shared": (lambda: nn.Sequential(Twice(), nn.Linear(4, 2)), draw, (4,)),
    "tokens": (tokens, words, (5,)),
    "tied head": (TiedHead, words, (5,)),
    "gru": (LastState, draw, (5, 4)),
    "attention": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
            Sums(),
            nn.Linear(4, 2),
        ),
        draw,
        (5, 4),
    ),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def network(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    build, sample, shape = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(1)
        model = build().double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                module.running_mean.normal_()
    return model, sample(5, *shape), sample(3, *shape, seed=1)


def one_by_one(model: nn.Module, x: Tensor) -> Tensor:
    """The whole Jacobian (N, O, parameters) by separate backward passes."""
    rows = []
    parameters = list(model.parameters())
    for out in model(x).flatten():
        grads = torch.autograd.grad(out, parameters, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows).unflatten(0, (len(x), -1))


@every_network
@pytest.mark.parametrize("route", ["structured", "jacobian", "products"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_all_routes_agree_with_gradients_one_by_one(name: str, route):
    model, x, x2 = network(name)
    a, b = one_by_one(model, x), one_by_one(model, x2)
    for other, right in ((None, a), (x2, b)):
        each = torch.einsum("nop,mup->nmou", a, right)
        found = empirical_ntk(model, x, other, route=route, outputs="each", block=2)
        torch.testing.assert_close(found, each)
        mean = empirical_ntk(model, x, other, route=route, block=3)
        torch.testing.assert_close(mean, each.diagonal(dim1=2, dim2=3).mean(-1))


def test_many_inputs_are_taken_output_by_output_and_report_progress():
    model, x, x2 = network("convnet")
    done: list[float] = []
    found = empirical_ntk(model, x, block=1, progress=done.append)
    torch.testing.assert_close(found, empirical_ntk(model, x, block=64))
    assert done == sorted(done)
    assert abs(done[-1] - 1) < 1e-12
    cross = empirical_ntk(model, x, x2, block=1)
    torch.testing.assert_close(cross, empirical_ntk(model, x, x2, route="jacobian"))


@pytest.mark.parametrize("route", ["jacobian", "products"])
def test_batch_norm_in_training_mode_sees_the_whole_batch(route):
    model, x, x2 = network("convnet")
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = empirical_ntk(model, x, x2, route=route, outputs="each")
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    exact = torch.einsum("nop,mup->nmou", one_by_one(model, x), one_by_one(model, x2))
    torch.testing.assert_close(found, exact)
    with pytest.raises(ValueError, match="couples the inputs"):
        empirical_ntk(model, x)


def test_frozen_parameters_are_left_out_and_the_model_is_left_alone():
    model, x, _ = network("mlp")
    model[0].requires_grad_(False)
    jacobian = one_by_one_of(model, x)
    torch.testing.assert_close(empirical_ntk(model, x), (jacobian @ jacobian.mT).mean(0))
    assert not model[2]._forward_hooks
    assert all(p.grad is None for p in model.parameters())
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="require gradients"):
        empirical_ntk(model, x)


class Total(nn.Module):
    """A number an input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).square().sum(1)


class Attention(nn.Module):
    """No layer that a rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x[:, None], x[:, None], x[:, None])[0]


ENDS = {
    "constant sum": lambda: nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(1)
    ),
    "layer norm": lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.LayerNorm(8)),
    "one number": Total,
    "attention only": Attention,
}


@pytest.mark.parametrize("name", ENDS)
def test_networks_of_any_end_are_taken(name):
    model, x = ENDS[name]().double(), draw(5, 4)
    jacobian = one_by_one_of(model, x)
    exact = (jacobian @ jacobian.mT).mean(0)
    for route in ("structured", "jacobian", "products"):
        torch.testing.assert_close(empirical_ntk(model, x, route=route), exact)


def test_half_precision_is_not_taken_for_another_use_of_a_weight():
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double(), draw(5, 4)
    exact = empirical_ntk(model, x)
    found = empirical_ntk(model.bfloat16(), x.bfloat16()).double()
    assert (found - exact).norm() <= 0.05 * exact.norm()


def test_dropout_and_other_outputs_are_refused():
    with pytest.raises(ValueError, match="dropout in training mode"):
        empirical_ntk(nn.Sequential(nn.Linear(4, 2), nn.Dropout()), draw(3, 4))
    with pytest.raises(TypeError, match="got tuple"):
        empirical_ntk(nn.LSTM(4, 2), draw(3, 4).float())


class Keyword(nn.Module):
    """Its layer is called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(input=x)


def test_a_layer_may_be_called_by_keyword():
    model, x = Keyword().double(), draw(3, 4)
    torch.testing.assert_close(empirical_ntk(model, x), empirical_ntk(model.layer, x))


def test_a_kernel_needs_inputs():
    for route in ("structured", "jacobian"):
        with pytest.raises(ValueError, match="at least one input"):
            empirical_ntk(nn.Linear(4, 2).double(), draw(0, 4), route=route)


def test_buffers_that_the_model_writes_are_left_alone():
    norm = nn.InstanceNorm1d(4, track_running_stats=True)
    model = nn.Sequential(nn.Conv1d(2, 4, 3), norm, nn.Flatten(), nn.Linear(8, 2)).double()
    x = draw(3, 2, 4)
    kernel = empirical_ntk(model, x)
    assert (norm.running_mean == 0).all()
    jacobian = one_by_one_of(model, x)
    torch.testing.assert_close(kernel, (jacobian @ jacobian.mT).mean(0))


def one_by_one_of(model: nn.Module, x: Tensor) -> Tensor:
    """(O, N, parameters) over the parameters that require gradients."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(o, wanted, retain_graph=True)])
        for o in model(x).flatten()
    ]
    return torch.stack(rows).unflatten(0, (len(x), -1)).transpose(0, 1)


def test_a_weight_used_outside_its_layer_is_noticed():
    model = Outside().double()
    with pytest.raises(ValueError, match=r"layer\.weight is also used outside"):
        empirical_ntk(model, draw(3, 4))
    jacobian = one_by_one(model, draw(3, 4))
    exact = torch.einsum("nop,mop->nm", jacobian, jacobian) / 4
    torch.testing.assert_close(empirical_ntk(model, draw(3, 4), route="jacobian"), exact)


@pytest.mark.parametrize("outputs", ["each", "mean"])
@pytest.mark.parametrize("positions", [1, 3, 40])
def test_both_orders_of_multiplication_agree(outputs, positions):
    a = Outer(draw(4, 2, 2, positions, 3), draw(4, 2, positions, 5, seed=1))
    b = Outer(draw(3, 2, 2, positions, 3, seed=2), draw(3, 2, positions, 5, seed=3))
    torch.testing.assert_close(a.kernel(b, outputs), inner(a.flat(), b.flat(), outputs))


def test_probes_cover_the_kernel_at_their_level():
    model, x, x2 = network("mlp")
    exact = empirical_ntk(model, x, x2)
    inside = []
    for seed in range(30):
        low, high = probed_ntk(model, x, x2, probes=40, seed=seed).interval(0.9)
        inside.append(((low <= exact) & (exact <= high)).double().mean())
    share = torch.stack(inside)
    assert (share.mean() - 0.9).abs() <= 5 * share.std() / 30**0.5 + 0.05
    with pytest.raises(ValueError, match="at least 2 probes"):
        probed_ntk(model, x, probes=1)
    with pytest.raises(ValueError, match="confidence level"):
        probed_ntk(model, x, probes=2).interval(1.5)


def test_the_operator_is_the_kernel():
    model, x, _ = network("convnet")
    kernel = empirical_ntk(model, x, outputs="each").transpose(1, 2).reshape(15, 15).numpy()
    operator = TangentOperator(model, x, block=2)
    np.testing.assert_allclose(operator @ np.eye(15), kernel, rtol=1e-9, atol=1e-9)
    top = eigsh(operator, k=3, return_eigenvectors=False, v0=np.ones(15))
    np.testing.assert_allclose(np.sort(top), np.linalg.eigvalsh(kernel)[-3:], rtol=1e-8)
    solution, failed = cg(operator + 0.1 * _identity(15), np.ones(15), rtol=1e-12)
    assert failed == 0
    np.testing.assert_allclose(kernel @ solution + 0.1 * solution, np.ones(15), rtol=1e-6)
    with pytest.raises(ValueError, match="couples inputs"):
        TangentOperator(model.train(), x)


def _identity(n: int):
    from scipy.sparse.linalg import aslinearoperator

    return aslinearoperator(np.eye(n))


def test_outputs_and_routes_that_do_not_exist_are_named():
    model, x, _ = network("mlp")
    with pytest.raises(ValueError, match="outputs is one of"):
        empirical_ntk(model, x, outputs="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="route is one of"):
        empirical_ntk(model, x, route="quick")  # type: ignore[arg-type]
