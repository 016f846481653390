"""The wrappers do what their formulas say, and behave as torch optimisers do."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.testing import assert_close

from bozzetto.optim import Anderson, Interpolatron, estimate_batch_norm
from bozzetto.optim.anderson import mixing_weights

Inner = Callable[[list[nn.Parameter]], Optimizer]
INNERS: dict[str, Inner] = {
    "sgd": lambda p: SGD(p, lr=0.05),
    "momentum": lambda p: SGD(p, lr=0.02, momentum=0.9),
    "adam": lambda p: Adam(p, lr=0.05),
    "adamw-foreach": lambda p: AdamW(p, lr=0.05, foreach=True),
    "adam-fused": lambda p: Adam(p, lr=0.05, fused=True),
}
WRAPPERS: dict[str, Callable[[Optimizer], Interpolatron | Anderson]] = {
    "lookahead": lambda o: Interpolatron(o, 1, 4, beta=0.5),
    "two-point": lambda o: Interpolatron(o, 2, 1),
    "block": lambda o: Interpolatron(o),
    "extrapolation": lambda o: Interpolatron(o, 2, 1, weights=(1.2, -0.2), growth=3.0),
    "bfloat16": lambda o: Interpolatron(o, 4, 2, dtype=torch.bfloat16),
    "anderson": lambda o: Anderson(o, 4, 2),
    "simplex": lambda o: Anderson(o, 3, 3, domain="simplex", beta=0.7, dtype=torch.bfloat16),
}
inner = pytest.mark.parametrize("make", INNERS.values(), ids=INNERS)
wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Quadratic:
    """½ xᵀ A x + noise of the gradient from a seed, over two parameters of several shapes."""

    def __init__(self, eigenvalues: Tensor, noise: float = 0.0) -> None:
        n = len(eigenvalues)
        basis = torch.linalg.qr(normal(n, n))[0]
        self.matrix, self.noise, self.calls = basis @ eigenvalues.diag() @ basis.T, noise, 0
        x = normal(n, seed=1)
        self.params = [nn.Parameter(x[:2].clone()), nn.Parameter(x[2:].reshape(-1, 1).clone())]

    def point(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.params])

    def backward(self) -> Tensor:
        x = torch.cat([p.flatten() for p in self.params])
        self.calls += 1
        loss = x @ self.matrix @ x / 2 + self.noise * normal(len(x), seed=self.calls) @ x
        loss.backward()
        return loss


def run(problem: Quadratic, optimizer: Optimizer, steps: int) -> list[Tensor]:
    """The points after every step."""
    path = []
    for _ in range(steps):
        optimizer.zero_grad()
        problem.backward()
        optimizer.step()
        path.append(problem.point())
    return path


def spread(n: int = 6) -> Tensor:
    return torch.logspace(0, -2, n, dtype=torch.float64)


def by_hand(
    make: Inner, steps: int, every: int, beta: float, mix: Callable[[list, list], Tensor]
) -> Tensor:
    """The method's definition, all points kept: mix(relaxed points, residuals), newest first."""
    problem = Quadratic(spread(), noise=0.1)
    optimizer, points, residuals = make(problem.params), [], []
    for _ in range(steps // every):
        x = problem.point()
        y = run(problem, optimizer, every)[-1]
        residuals.insert(0, y - x)
        points.insert(0, x + beta * (y - x))
        mixed = mix(points, residuals)
        with torch.no_grad():
            problem.params[0].copy_(mixed[:2])
            problem.params[1].copy_(mixed[2:, None])
    return problem.point()


@inner
@pytest.mark.parametrize(("k", "a"), [(1, 0.5), (5, 0.5), (5, 0.8), (3, 1.0)])
def test_history_one_is_lookahead(make, k, a):
    problem = Quadratic(spread(), noise=0.1)
    optimizer = make(problem.params)
    slow = [p.detach().clone() for p in problem.params]
    for step in range(1, 21):
        run(problem, optimizer, 1)
        if step % k == 0:
            slow = [s + a * (p.detach() - s) for s, p in zip(slow, problem.params, strict=True)]
            with torch.no_grad():
                for s, p in zip(slow, problem.params, strict=True):
                    p.copy_(s)
    other = Quadratic(spread(), noise=0.1)
    run(other, Interpolatron(make(other.params), 1, k, beta=a), 20)
    assert_close(other.point(), problem.point(), rtol=1e-12, atol=1e-12)


@inner
@pytest.mark.parametrize("history", [2, 4])
def test_equal_weights_restart_every_block_from_the_moving_average(make, history):
    def average(points, residuals):
        padded = points[:history] + [points[-1]] * (history - len(points))
        return torch.stack(padded).mean(0)

    problem = Quadratic(spread(), noise=0.1)
    optimizer = make(problem.params)
    run(problem, Interpolatron(optimizer, history, 3, weights=[1 / history] * history), 24)
    expected = by_hand(make, 24, 3, 1.0, average)
    assert_close(problem.point(), expected, rtol=1e-10, atol=1e-11)


@inner
@pytest.mark.parametrize("weights", [None, (1.3, -0.3), (0.5, 0.2, 0.2, 0.1)])
@pytest.mark.parametrize(("every", "beta"), [(1, 1.0), (4, 0.6), (2, 1.3)])
def test_fixed_weights_follow_the_recurrence(make, weights, every, beta):
    n = len(weights or (3, 2, 1))
    alpha = weights or (3 / 6, 2 / 6, 1 / 6)

    def mix(points, residuals):
        padded = points[:n] + [points[-1]] * (n - len(points))
        return sum(a * z for a, z in zip(alpha, padded, strict=True))

    problem = Quadratic(spread(), noise=0.1)
    wrapped = Interpolatron(make(problem.params), n, every, weights=weights, beta=beta)
    run(problem, wrapped, 20)
    assert_close(problem.point(), by_hand(make, 20, every, beta, mix), rtol=1e-9, atol=1e-10)


@inner
def test_all_weight_on_the_newest_point_is_the_plain_optimiser_bit_for_bit(make):
    plain, mixed = Quadratic(spread(), noise=0.1), Quadratic(spread(), noise=0.1)
    run(plain, make(plain.params), 15)
    run(mixed, Interpolatron(make(mixed.params), 3, 2, weights=(1.0, 0.0, 0.0)), 15)
    assert_close(mixed.point(), plain.point(), rtol=0, atol=0)


def constrained_minimum(residuals: list[Tensor], ridge: float) -> Tensor:
    """argmin over Σα = 1 by the bordered (Lagrange) system, as an oracle for the two-step solve."""
    r = torch.stack(residuals)  # (n, d)
    n, gram = len(r), r @ r.T
    gram = gram + (ridge * gram.trace() / n) * torch.eye(n, dtype=r.dtype)
    system = torch.ones(n + 1, n + 1, dtype=r.dtype)
    system[:n, :n], system[n, n] = gram, 0
    right = torch.zeros(n + 1, dtype=r.dtype)
    right[n] = 1
    return torch.linalg.solve(system, right)[:n]


@inner
@pytest.mark.parametrize(("history", "every", "beta"), [(1, 1, 0.5), (2, 1, 1.0), (4, 3, 0.7)])
def test_anderson_follows_its_definition(make, history, every, beta):
    def mix(points, residuals):
        alpha = constrained_minimum(residuals[:history], 1e-3)
        mixed = sum(a * z for a, z in zip(alpha, points, strict=False))
        way = mixed - (points[0] - beta * residuals[0])
        return mixed if way @ residuals[0] >= 0 else points[0]

    problem = Quadratic(spread(), noise=0.1)
    optimizer = make(problem.params)
    wrapped = Anderson(optimizer, history, every, beta=beta, ridge=1e-3, growth=math.inf)
    run(problem, wrapped, 24)
    assert_close(problem.point(), by_hand(make, 24, every, beta, mix), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("distinct", [1, 2, 3, 5])
def test_anderson_ends_on_a_quadratic_one_step_after_as_many_as_distinct_eigenvalues(distinct):
    eigenvalues = torch.linspace(1, 0.1, distinct, dtype=torch.float64).repeat(4)[:12]
    problem = Quadratic(eigenvalues)
    first = problem.point().norm()
    optimizer = Anderson(SGD(problem.params, lr=0.9), distinct + 1, ridge=0.0, growth=math.inf)
    path = run(problem, optimizer, distinct + 3)
    assert path[distinct - 1].norm() > 1e-3 * first
    assert path[distinct].norm() < 1e-5 * first  # rounding: the Gram matrix squares the condition
    assert path[distinct + 2].norm() < 1e-11 * first


def test_two_point_interpolation_doubles_the_stable_learning_rate():
    def growth(rate: float, weights: tuple[float, ...]) -> float:
        problem = Quadratic(torch.ones(6, dtype=torch.float64))
        optimizer = SGD(problem.params, lr=rate)
        path = run(problem, Interpolatron(optimizer, len(weights), 1, weights=weights), 200)
        return float(path[-1].norm() / problem.calls / path[0].norm())

    assert growth(1.9, (1.0,)) < 1e-3
    assert growth(2.1, (1.0,)) > 1e3
    assert growth(3.8, (2 / 3, 1 / 3)) < 1e-3
    assert growth(4.2, (2 / 3, 1 / 3)) > 1e3


@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", range(4))
def test_simplex_weights_meet_the_optimality_conditions(n, seed):
    r = normal(n, 8, seed=seed) + 0.5 * normal(8, seed=99)
    gram = r @ r.T
    alpha = mixing_weights(gram, "simplex")
    assert_close(alpha.sum(), torch.ones((), dtype=alpha.dtype))
    assert (alpha >= 0).all()
    slope, level = gram @ alpha, alpha @ gram @ alpha
    assert (slope >= level * (1 - 1e-9)).all()  # no vertex is downhill
    assert_close(slope[alpha > 0], level.expand(int((alpha > 0).sum())))


def test_a_long_history_is_mixed_too():
    gram = torch.linspace(1, 2, 70, dtype=torch.float64)
    weights = mixing_weights(gram.diag(), "affine")
    assert_close(weights, (1 / gram) / (1 / gram).sum())


def test_the_affine_minimum_may_leave_the_simplex_and_is_lower():
    r = torch.tensor([[1.0, 0.0], [2.0, 0.5]], dtype=torch.float64)
    gram = r @ r.T
    affine, simplex = mixing_weights(gram, "affine"), mixing_weights(gram, "simplex")
    assert affine.min() < 0
    assert_close(simplex, torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert affine @ gram @ affine < simplex @ gram @ simplex


class Network:
    """A small network with batches that depend on the step's number only."""

    def __init__(self) -> None:
        sizes = [(5, 7), (7, 3)]
        layers = [nn.Linear(*size) for size in sizes]
        with torch.no_grad():
            for seed, layer in enumerate(layers):
                layer.weight.copy_(normal(*layer.weight.shape, seed=seed) / 2)
                layer.bias.zero_()
        self.model = nn.Sequential(layers[0], nn.Tanh(), layers[1])
        self.params = list(self.model.parameters())

    def loss(self, step: int) -> Tensor:
        x = normal(8, 5, seed=1000 + step).float()
        return nn.functional.cross_entropy(self.model(x), x[:, :3].argmax(1))

    def train(self, optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            self.loss(step).backward()
            optimizer.step()


def through_a_file(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@wrapper
@inner
@pytest.mark.parametrize("stop", [0, 1, 7, 12])
def test_resumed_equals_uninterrupted_bit_for_bit(make, wrap, stop):
    whole = Network()
    whole.train(wrap(make(whole.params)), range(24))
    first = Network()
    optimizer = wrap(make(first.params))
    first.train(optimizer, range(stop))
    weights, state = (
        through_a_file(first.model.state_dict()),
        through_a_file(optimizer.state_dict()),
    )
    second = Network()
    second.model.load_state_dict(weights)
    optimizer = wrap(make(second.params))
    optimizer.load_state_dict(state)
    second.train(optimizer, range(stop, 24))
    for resumed, expected in zip(second.params, whole.params, strict=True):
        assert_close(resumed, expected, rtol=0, atol=0)


@wrapper
def test_a_state_dict_does_not_change_while_training_goes_on(wrap):
    network = Network()
    optimizer = wrap(SGD(network.params, lr=0.1))
    network.train(optimizer, range(9))
    state = optimizer.state_dict()["mixing"]
    before = copy.deepcopy(state)
    network.train(optimizer, range(9, 20))
    assert_close(state[0]["memory"], before[0]["memory"], rtol=0, atol=0)


@wrapper
def test_copies_and_pickles_go_on_as_the_original_and_share_groups_with_their_own_inner(wrap):
    def push(optimizer: Optimizer, steps: range) -> Tensor:
        for step in steps:
            for p in optimizer.param_groups[0]["params"]:
                p.grad = p.detach() + normal(*p.shape, seed=step)
            optimizer.step()
        return torch.cat([p.detach() for p in optimizer.param_groups[0]["params"]])

    def fresh() -> Optimizer:
        return wrap(Adam([nn.Parameter(normal(5, seed=s)) for s in (1, 2)], lr=0.05))

    expected = push(fresh(), range(15))
    optimizer = fresh()
    push(optimizer, range(7))
    for clone in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert clone.param_groups is clone.inner.param_groups
        assert clone.state is clone.inner.state
        assert clone.param_groups is not optimizer.param_groups
        assert_close(push(clone, range(7, 15)), expected, rtol=0, atol=0)


def bytes_held(memory: object) -> int:
    if isinstance(memory, Tensor):
        return memory.numel() * memory.element_size()
    return sum(map(bytes_held, memory)) if isinstance(memory, list) else 0


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("history", [2, 3, 6])
def test_memory_is_what_the_docstrings_say(dtype, history):
    size = 2 if dtype else 4
    expected = {
        Interpolatron: 4 + size * (history - 2),
        Anderson: 2 * 4 + size * (2 * history - 3),
    }
    for kind, bytes_a_value in expected.items():
        network = Network()
        optimizer = kind(SGD(network.params, lr=0.1), history, 2, dtype=dtype)
        network.train(optimizer, range(40))
        values = sum(p.numel() for p in network.params)
        held = vars(optimizer.memory) | {"gram": None}
        assert sum(map(bytes_held, held.values())) == bytes_a_value * values


@pytest.mark.parametrize("kind", [Interpolatron, Anderson])
def test_a_bfloat16_history_costs_the_precision_of_steps_not_of_weights(kind):
    ends = []
    for dtype in (None, torch.bfloat16):
        network = Network()
        optimizer = kind(SGD(network.params, lr=0.01), 3, 1, dtype=dtype)
        start = torch.cat([p.detach().flatten() for p in network.params])
        network.train(optimizer, range(20))
        ends.append(torch.cat([p.detach().flatten() for p in network.params]))
    moved = (ends[0] - start).norm()
    assert (
        0 < (ends[1] - ends[0]).norm() < 2**-6 * moved
    )  # rounding weights would cost 2**-9 of them
    assert moved < 0.25 * start.norm()


@wrapper
def test_parameters_without_gradient_stay_bit_for_bit(wrap):
    network = Network()
    idle = nn.Parameter(normal(4).float())
    network.params.append(idle)
    before = idle.detach().clone()
    network.train(wrap(Adam(network.params, lr=0.1)), range(20))
    assert_close(idle.detach(), before, rtol=0, atol=0)


@wrapper
def test_sparse_gradients_give_what_dense_ones_give(wrap):
    tables = []
    for sparse in (True, False):
        table = nn.Embedding.from_pretrained(normal(6, 3).float(), freeze=False, sparse=sparse)
        optimizer = wrap(SGD(table.parameters(), lr=0.1))
        for _ in range(12):
            optimizer.zero_grad()
            (table(torch.arange(6)) ** 2).sum().backward()
            optimizer.step()
        tables.append(table.weight)
    assert_close(*tables)


@wrapper
def test_complex_parameters_are_pairs_of_real_ones(wrap):
    ends = []
    for is_complex in (True, False):
        z = torch.view_as_complex(normal(5, 2)) if is_complex else normal(5, 2)
        z = nn.Parameter(z.clone())
        optimizer = wrap(SGD([z], lr=0.1, momentum=0.5))
        for _ in range(12):
            optimizer.zero_grad()
            (z.abs() ** 2).sum().backward()
            optimizer.step()
        ends.append(torch.view_as_real(z.detach()) if is_complex else z.detach())
    assert_close(*ends)


@wrapper
def test_param_groups_keep_their_own_options(wrap):
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = wrap(SGD([{"params": [a], "lr": 0.0}, {"params": [b]}], lr=0.1))
    for _ in range(12):
        optimizer.zero_grad()
        ((a**2).sum() + (b**2).sum()).backward()
        optimizer.step()
    assert_close(a.detach(), torch.ones(3), rtol=0, atol=0)
    assert (b.detach().abs() < 0.9).all()


@wrapper
def test_an_added_group_is_trained_and_the_history_starts_afresh(wrap):
    network = Network()
    optimizer = wrap(SGD(network.params[:2], lr=0.1))
    network.train(optimizer, range(7))
    optimizer.add_param_group({"params": network.params[2:], "lr": 0.2})
    assert [group["lr"] for group in optimizer.inner.param_groups] == [0.1, 0.2]
    assert optimizer.memory.count == 0
    fresh = copy.deepcopy(network)
    fresh.params = list(fresh.model.parameters())
    groups = [{"params": fresh.params[:2]}, {"params": fresh.params[2:], "lr": 0.2}]
    fresh.train(wrap(SGD(groups, lr=0.1)), range(7, 20))
    network.train(optimizer, range(7, 20))
    for got, expected in zip(network.params, fresh.params, strict=True):
        assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("of", ["wrapper", "inner"])
@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20),
    ],
)
def test_a_schedule_acts_through_either(schedule, of):
    wrapped, plain = Network(), Network()
    optimizer = Interpolatron(SGD(wrapped.params, lr=0.1, momentum=0.9), 2, weights=(1.0, 0.0))
    reference = SGD(plain.params, lr=0.1, momentum=0.9)
    schedules = [schedule(optimizer if of == "wrapper" else optimizer.inner), schedule(reference)]
    for step in range(12):
        wrapped.train(optimizer, range(step, step + 1))
        plain.train(reference, range(step, step + 1))
        for each in schedules:
            each.step()
    assert optimizer.param_groups[0]["lr"] == reference.param_groups[0]["lr"] != 0.1
    for got, expected in zip(wrapped.params, plain.params, strict=True):
        assert_close(got, expected, rtol=0, atol=0)


@wrapper
def test_groups_stay_shared_when_the_inner_state_is_loaded_by_itself(wrap):
    network = Network()
    optimizer = wrap(Adam(network.params, lr=0.1))
    network.train(optimizer, range(3))
    optimizer.inner.load_state_dict(optimizer.inner.state_dict())
    assert optimizer.param_groups is optimizer.inner.param_groups
    assert optimizer.state is optimizer.inner.state


def test_closures_are_evaluated_by_the_inner_optimiser_and_its_loss_is_returned():
    problem = Quadratic(spread())
    optimizer = Interpolatron(torch.optim.LBFGS(problem.params, max_iter=4), 2, 1)

    def closure() -> float:
        optimizer.zero_grad()
        return problem.backward().item()

    losses = [optimizer.step(closure) for _ in range(8)]
    assert problem.calls > 8
    assert losses[-1] < 1e-3 * losses[0]


@pytest.mark.parametrize("fused", [False, True])
def test_a_grad_scaler_skips_overflowing_steps_and_changes_nothing_else(fused):
    scaled, plain = Network(), Network()
    optimizer = Interpolatron(Adam(scaled.params, lr=0.05, fused=fused), 2, 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(8):
        optimizer.zero_grad()
        loss = scaled.loss(step) * (math.inf if step == 3 else 1)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    reference = Interpolatron(Adam(plain.params, lr=0.05, fused=fused), 2, 2)
    plain.train(reference, range(3))
    plain.train(reference, range(4, 8))
    assert optimizer.memory.count == 7
    for got, expected in zip(scaled.params, plain.params, strict=True):
        assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_hooks_fire_around_the_whole_step_and_the_state():
    network, seen = Network(), []
    optimizer = Interpolatron(SGD(network.params, lr=0.1), 2, 1)
    optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append(o.memory.count))
    optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append(o.memory.count))
    network.train(optimizer, range(2))
    assert seen == [0, 1, 1, 2]
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("before"))
    optimizer.register_state_dict_post_hook(lambda o, state: {**state, "note": 1})
    optimizer.register_load_state_dict_pre_hook(lambda o, state: seen.append(state["note"]))
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append("after"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen[4:] == ["before", 1, "after"]


def test_wrappers_nest_and_resume():
    whole, first = Network(), Network()

    def nested(network: Network) -> Interpolatron:
        return Interpolatron(Anderson(SGD(network.params, lr=0.1), 3, 2), 1, 6, beta=0.5)

    whole.train(nested(whole), range(20))
    optimizer = nested(first)
    first.train(optimizer, range(9))
    state = through_a_file(optimizer.state_dict())
    optimizer = nested(first)
    optimizer.load_state_dict(state)
    first.train(optimizer, range(9, 20))
    for got, expected in zip(first.params, whole.params, strict=True):
        assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("bad", [50.0, math.inf, math.nan])
@pytest.mark.parametrize("kind", ["fixed", "anderson"])
def test_a_mix_that_is_followed_by_a_leap_is_taken_back(kind, bad):
    """Gradient 1 as far as 3; beyond, where only a mix leads, a leap."""
    x = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = {
        "fixed": Interpolatron(SGD([x], lr=1.0), 2, 1, weights=(4.0, -3.0), growth=4.0),
        "anderson": Anderson(SGD([x], lr=1.0), 2, 1, growth=4.0),
    }[kind]
    slopes = {"fixed": [1.0, 1.0, bad], "anderson": [1.0, 0.9, bad]}[kind]
    points = [0.0]
    for slope in [*slopes, 0.5]:
        x.grad = torch.full_like(x, -slope)
        optimizer.step()
        points.append(x.item())
    plain = sum(slopes[:2])  # z of the last accepted block
    assert points[2] > plain + 1
    assert_close(points[3], plain)
    assert optimizer.rejections == 1
    assert math.isfinite(points[4])


def test_anderson_leaves_a_saddle_as_the_plain_optimiser_does():
    """½x² - ½y² + ¼y⁴ from near (1, 0): residuals grow on the way out, least squares leads back."""
    ends = {}
    for kind in ("plain", "anderson"):
        p = nn.Parameter(torch.tensor([1.0, 1e-4], dtype=torch.float64))
        inner = SGD([p], lr=0.3)
        optimizer = Anderson(inner, 4) if kind == "anderson" else inner
        for step in range(100):
            optimizer.zero_grad()
            (p[0] ** 2 / 2 - p[1] ** 2 / 2 + p[1] ** 4 / 4).backward()
            optimizer.step()
            if kind not in ends and abs(p[1].item() - 1) < 1e-4:
                ends[kind] = step
    assert ends["anderson"] < 1.5 * ends["plain"]
    assert optimizer.rejections > 0
    assert_close(p.detach(), torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-8)


def test_without_growth_nothing_is_taken_back():
    x = nn.Parameter(torch.zeros(1))
    optimizer = Interpolatron(SGD([x], lr=1.0), 2, 1)
    for slope in (1.0, 1.0, 1e6):
        x.grad = torch.full_like(x, -slope)
        optimizer.step()
    assert optimizer.rejections == 0
    assert x.item() > 1e5


def test_anderson_rests_at_the_minimum():
    x = nn.Parameter(torch.zeros(3))
    optimizer = Anderson(SGD([x], lr=1.0), 3)
    for _ in range(6):
        optimizer.zero_grad()
        (x**2).sum().backward()
        optimizer.step()
    assert_close(x.detach(), torch.zeros(3), rtol=0, atol=0)
    assert optimizer.rejections == 0


def test_restart_forgets_the_history():
    problem, other = Quadratic(spread()), Quadratic(spread())
    optimizer = Interpolatron(SGD(problem.params, lr=0.5), 3, 2)
    run(problem, optimizer, 5)
    optimizer.restart()
    with torch.no_grad():
        for p, q in zip(problem.params, other.params, strict=True):
            p.copy_(q)
    path = run(problem, optimizer, 8)
    fresh = run(other, Interpolatron(SGD(other.params, lr=0.5), 3, 2), 8)
    assert_close(path[-1], fresh[-1], rtol=0, atol=0)


class Recorder(nn.Module):
    """Linear, batch norm and dropout; a frozen part in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.frozen = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Dropout(0.5)
        self.top = nn.BatchNorm1d(4)
        self.frozen.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.drop(self.norm(x)))


def test_batch_norm_statistics_are_those_of_the_batches_weighed_by_size():
    model = Recorder()
    with torch.no_grad():
        model.norm.running_mean.fill_(math.nan)  # of a run that diverged
    x = normal(30, 4).float() * 3 + 1
    parts = [x[:20], x[20:26], x[26:]]
    estimate_batch_norm(model, [(part, torch.zeros(len(part))) for part in parts])
    mean = sum(len(p) * p.mean(0) for p in parts) / 30
    variance = sum(len(p) * p.var(0) for p in parts) / 30
    assert_close(model.norm.running_mean, mean)
    assert_close(model.norm.running_var, variance)
    assert_close(model.top.running_mean, torch.zeros(4), rtol=0, atol=1e-6)  # no dropout
    assert model.training
    assert not model.frozen.training
    assert model.norm.momentum == 0.1


def test_batch_norm_flags_are_restored_when_a_batch_fails():
    model = Recorder().eval()
    model.norm.train()
    with pytest.raises(RuntimeError):
        estimate_batch_norm(model, [normal(5, 4).float(), normal(5, 7).float()])
    assert [m.training for m in model.modules()] == [False, True, False, False, False]
    assert [model.norm.momentum, model.top.momentum] == [0.1, 0.1]


def test_batch_norm_needs_batches_and_leaves_other_models_alone():
    model = Recorder()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="at least one batch; got none"):
        estimate_batch_norm(model, [])
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    estimate_batch_norm(nn.Linear(2, 2), [])


def one() -> SGD:
    return SGD([nn.Parameter(torch.zeros(2))], lr=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Interpolatron(one(), 0), "history must be an integer >= 1; got 0"),
        (lambda: Interpolatron(one(), 2.5), "history must be an integer >= 1; got 2.5"),
        (lambda: Anderson(one(), 0), "history must be an integer >= 1; got 0"),
        (lambda: Interpolatron(one(), 2, 0), "every must be an integer >= 1; got 0"),
        (lambda: Interpolatron(one(), weights=(0.5, 0.3, 0.1)), "weights must sum to one; got"),
        (lambda: Interpolatron(one(), 2, weights=(math.nan, 1.0)), "weights must sum to one; got"),
        (
            lambda: Interpolatron(one(), weights=(0.5, 0.5)),
            "history=3 needs as many weights; got 2",
        ),
        (lambda: Interpolatron(one(), beta=0.0), r"beta must be in \(0, 2\]"),
        (lambda: Anderson(one(), beta=math.nan), r"beta must be in \(0, 2\].*got nan"),
        (lambda: Anderson(one(), growth=0.0), "growth must be > 0"),
        (lambda: Anderson(one(), ridge=-1.0), "ridge must be >= 0 and finite; got -1"),
        (lambda: Anderson(one(), domain="cone"), "'affine' or 'simplex'; got 'cone'"),
        (lambda: Anderson(one(), 13, domain="simplex"), "history <= 12; got 13"),
        (lambda: Interpolatron(one(), dtype=torch.int8), "floating-point type; got torch.int8"),
        (lambda: Interpolatron(SGD([{"params": []}], lr=0.1)), "no parameters"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_only_optimisers_are_wrapped():
    with pytest.raises(TypeError, match=r"must be a torch.optim.Optimizer; got list"):
        Interpolatron([nn.Parameter(torch.zeros(2))])


def test_a_state_of_another_kind_is_refused_and_changes_nothing():
    network = Network()
    optimizer = Interpolatron(Adam(network.params, lr=0.1))
    network.train(optimizer, range(12))
    before = copy.deepcopy(optimizer.state_dict())
    other = Interpolatron(Adam(network.params, lr=0.2), 4)
    smaller = Interpolatron(Adam(network.params[:2], lr=0.2))
    network.train(smaller, range(12))
    refused = {
        "has no history": Adam(network.params, lr=0.3).state_dict(),
        "saved with .*'history': 4": other.state_dict(),
        "saved anchor has shapes": smaller.state_dict(),
    }
    for message, state in refused.items():
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(state)
        assert_close(optimizer.state_dict()["mixing"][0]["memory"], before["mixing"][0]["memory"])
        assert optimizer.param_groups[0]["lr"] == 0.1


def test_steps_are_differences_of_the_points_visited():
    problem = Quadratic(spread())
    optimizer = Interpolatron(SGD(problem.params, lr=0.5), 4, 1, weights=(1.0, 0.0, 0.0, 0.0))
    path = run(problem, optimizer, 6)
    steps = [torch.cat([t.flatten() for t in step]) for step in optimizer.memory.steps]
    expected = [new - old for old, new in pairwise(path)][::-1][:2]
    assert_close(steps, expected)


def test_a_damaged_history_is_refused():
    problem = Quadratic(spread())
    optimizer = Anderson(SGD(problem.params, lr=0.5))
    run(problem, optimizer, 5)
    for damage in (
        lambda memory: memory.pop("gram"),
        lambda memory: memory.update(gram=memory["gram"][:1, :1]),
        lambda memory: memory.update(more=1),
    ):
        state = copy.deepcopy(optimizer.state_dict())
        damage(state["mixing"][0]["memory"])
        with pytest.raises(ValueError, match="the saved history needs"):
            optimizer.load_state_dict(state)
    for mixing in (3, [], [3]):
        with pytest.raises(ValueError, match="has no history"):
            optimizer.load_state_dict({**optimizer.state_dict(), "mixing": mixing})
