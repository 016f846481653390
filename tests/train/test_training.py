"""The training loop: what it computes, what it leaves alone and what it refuses."""

import copy
import hashlib
import math
import random
from types import SimpleNamespace

import matplotlib.figure
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.testing import assert_close
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from bozzetto.train import Diverged, History, Recipe, evaluate, train

PLAIN = Recipe(epochs=2, optimizer="sgd", lr=0.1, schedule="constant", warmup=0.0)
DRAWS = torch.Generator().manual_seed(0)
X = torch.randn(40, 6, generator=DRAWS)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def net(*, dropout=0.5, seed=0, classes=3):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, 12),
            nn.BatchNorm1d(12),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(12, classes),
        )


def linear(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Linear(6, 3)


def batches(size=10, y=Y):
    return list(zip(X.split(size), y.split(size), strict=True))


def shuffled(**settings):
    return DataLoader(TensorDataset(X, Y), batch_size=10, shuffle=True, **settings)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model, other):
    """Bit for bit."""
    assert_close(weights(model), weights(other), rtol=0, atol=0)


def digest(model):
    content = hashlib.sha256()
    for name, value in model.state_dict().items():
        content.update(name.encode() + value.numpy().tobytes())
    return content.hexdigest()


def test_it_is_the_loop_one_would_write_by_hand():
    model, other = net(dropout=0.0), net(dropout=0.0)
    history = train(model, batches(), PLAIN)
    other.train()
    optimizer, losses = SGD(other.parameters(), lr=0.1, momentum=0.9), []
    for x, y in batches() * 2:
        optimizer.zero_grad()
        loss = F.cross_entropy(other(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    same(model, other)
    assert history.losses == tuple(losses)
    assert history.rates == (0.1,) * 8


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_decay_and_clipping_are_those_of_torch(name):
    recipe = Recipe(
        epochs=2, optimizer=name, lr=0.01, weight_decay=0.1, clip=0.05, schedule="step", warmup=0
    )
    model, other = net(dropout=0.0), net(dropout=0.0)
    train(model, batches(), recipe)
    other.train()
    matrices = [p for p in other.parameters() if p.ndim > 1]
    vectors = [p for p in other.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0}]
    makers = {
        "sgd": lambda: SGD(groups, lr=0.01, momentum=0.9),
        "adam": lambda: torch.optim.Adam(groups, lr=0.01),
        "adamw": lambda: torch.optim.AdamW(groups, lr=0.01),
    }
    optimizer = makers[name]()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [4, 6])
    for x, y in batches() * 2:
        optimizer.zero_grad()
        F.cross_entropy(other(x), y).backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.05)
        optimizer.step()
        schedule.step()
    assert_close(weights(model), weights(other), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("sizes", [(10, 10, 10, 10), (7, 13, 19, 1)])
def test_accumulated_batches_are_one_large_batch(sizes):
    parts = list(zip(X.split(sizes), Y.split(sizes), strict=True))
    model, whole = linear(), linear()
    history = train(model, parts, Recipe(epochs=3, optimizer="sgd", lr=0.1, accumulate=4))
    expected = train(whole, [(X, Y)], Recipe(epochs=3, optimizer="sgd", lr=0.1))
    assert_close(weights(model), weights(whole), rtol=1e-5, atol=1e-6)
    assert history.losses == pytest.approx(expected.losses, rel=1e-5)
    assert history.rates == expected.rates


def test_a_rest_of_the_batches_makes_a_step_too():
    assert len(train(net(), batches(), Recipe(epochs=2, accumulate=3)).losses) == 4


def test_the_seed_decides_and_a_validation_changes_nothing():
    results = []
    for seed, val in [(0, None), (0, batches()), (0, shuffled()), (1, None)]:
        results.append(net())
        train(results[-1], shuffled(), Recipe(epochs=2, seed=seed, ema=0.5), val=val)
    same(results[0], results[1])
    same(results[0], results[2])
    assert digest(results[0]) != digest(results[3])


def test_a_loaders_generator_gives_another_order_each_epoch_and_is_put_back():
    orders = []
    for given in (5, 5, 6):
        generator = torch.Generator().manual_seed(given)
        generator_state, seen = generator.get_state(), []
        model = net()
        model.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0][:, 0]))
        train(model, shuffled(generator=generator), Recipe(epochs=2))
        assert_close(generator.get_state(), generator_state, rtol=0, atol=0)
        orders.append(torch.cat(seen))
    assert_close(orders[0], orders[1], rtol=0, atol=0)
    assert (orders[0] != orders[2]).any()
    assert (orders[0][:40] != orders[0][40:]).any()


def test_samplers_are_told_the_epoch():
    class Sampler:
        epochs: tuple[int, ...] = ()

        def set_epoch(self, epoch):
            self.epochs += (epoch,)

        def __iter__(self):
            return iter(range(40))

        def __len__(self):
            return 40

    sampler = Sampler()
    train(net(), DataLoader(TensorDataset(X, Y), 10, sampler=sampler), Recipe(epochs=3))
    assert sampler.epochs == (0, 1, 2)


@pytest.mark.parametrize("broken", [False, True])
def test_global_random_state_and_training_flags_are_left_alone(broken):
    model, teacher = net(), net(seed=1)
    model.eval()
    model[1].train()
    flags = [[m.training for m in each.modules()] for each in (model, teacher)]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    loader = [*batches(), (X, Y + 7)] if broken else batches()
    if broken:
        with pytest.raises(ValueError, match="they go from 7 to 9"):
            train(model, loader, teacher=teacher, val=batches())
    else:
        train(model, loader, teacher=teacher, val=batches())
    assert_close(torch.get_rng_state(), states[0], rtol=0, atol=0)
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002
    assert [[m.training for m in each.modules()] for each in (model, teacher)] == flags
    assert all(p.grad is None for p in model.parameters())


def test_the_teacher_is_not_touched():
    teacher = net(seed=1)
    before = digest(teacher)
    train(net(), batches(), Recipe(epochs=2), teacher=teacher)
    assert digest(teacher) == before
    assert teacher.training
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("loss", ["auto", "cross_entropy"])
def test_a_student_becomes_its_teacher_without_labels(loss):
    teacher, student = linear(0), linear(1)
    recipe = Recipe(epochs=200, lr=0.1, weight_decay=0, loss=loss, temperature=1)
    train(student, X.split(10), recipe, teacher=teacher)
    assert_close(student(X).softmax(1), teacher(X).softmax(1), rtol=0, atol=0.01)


def test_models_that_take_names_and_return_their_loss_are_trained():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net(dropout=0.0)

        def forward(self, x, labels=None):
            logits = self.inner(x)
            loss = None if labels is None else F.cross_entropy(logits, labels)
            return SimpleNamespace(logits=logits, loss=loss)

    plain, named, keyed = net(dropout=0.0), Model(), Model()
    train(plain, batches(), PLAIN)
    train(named, [{"x": x, "labels": y} for x, y in batches()], PLAIN)
    train(keyed, [({"x": x}, y) for x, y in batches()], PLAIN)
    same(plain, named.inner)
    same(plain, keyed.inner)


def test_the_average_is_that_of_the_formula_and_is_what_is_delivered_and_evaluated():
    model, live = net(), []

    def keep(progress):
        if not progress.metrics:
            live.append(weights(model))

    expected = weights(model)
    history = train(model, batches(), Recipe(epochs=2, ema=0.3), val=batches(), callbacks=[keep])
    for step, now in enumerate(live, start=1):
        decay = min(0.3, (1 + step) / (10 + step))
        for name, value in now.items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
            else:
                expected[name] = value
    assert_close(weights(model), expected)
    assert history.epochs[-1]["val_accuracy"] == evaluate(model, batches())


def test_the_average_of_half_precision_moves_too():
    model, live = linear().bfloat16(), []
    data = [(x.bfloat16(), y) for x, y in batches()]

    def keep(_):
        live.append(weights(model)["weight"].double())

    expected = weights(model)["weight"].double()
    recipe = Recipe(epochs=40, optimizer="sgd", lr=0.01, ema=0.995)
    train(model, data, recipe, callbacks=[keep])
    steps = [now for place, now in enumerate(live) if (place + 1) % 5]  # an epoch is told of twice
    for step, now in enumerate(steps, start=1):
        decay = min(0.995, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * now
    assert_close(model.weight.double(), expected, rtol=2**-8, atol=1e-4)


def test_tied_weights_stay_tied_and_are_averaged_once():
    def tied():
        model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        model[0].weight.data = 0.1 * torch.arange(36.0).reshape(6, 6).sin()
        model[2].weight = model[0].weight
        return model

    model = tied()
    train(model, batches(y=X), Recipe(epochs=2, ema=0.9))
    assert model[2].weight is model[0].weight
    assert not torch.isclose(model[0].weight, tied()[0].weight).any()


def test_a_checkpoint_may_be_named_by_a_string(tmp_path):
    once, again = linear(), linear()
    file = tmp_path / "run"
    train(once, batches(), PLAIN, checkpoint=str(file))
    assert train(again, batches(), PLAIN, checkpoint=str(file)).losses
    same(once, again)


class ScheduleFree(SGD):
    """After Defazio et al. 2024: trains at y = 0.1 z + 0.9 x, evaluates at the average x."""

    def __init__(self, params, **settings):
        super().__init__(params, **settings)
        self.training, self.steps = False, 0
        self.mean = [p.detach().clone() for g in self.param_groups for p in g["params"]]

    def _exchange(self, training):
        if training is not self.training:
            parameters = [p for g in self.param_groups for p in g["params"]]
            for p, mean in zip(parameters, self.mean, strict=True):
                kept = p.detach().clone()
                p.data.copy_(mean)
                mean.copy_(kept)
            self.training = training

    def train(self):
        self._exchange(True)

    def eval(self):
        self._exchange(False)

    def step(self, closure=None):
        assert self.training
        super().step(closure)
        self.steps += 1
        for p, mean in zip(
            [p for g in self.param_groups for p in g["params"]], self.mean, strict=True
        ):
            mean.lerp_(p.detach(), 1 / self.steps)


def test_an_optimizer_with_two_points_is_switched_for_evaluation_and_at_the_end():
    made, seen = [], []

    def make(params):
        made.append(ScheduleFree(params, lr=0.05))
        return made[-1]

    def accuracy_while(outputs, targets):
        seen.append(made[-1].training)
        return float((outputs.argmax(1) == targets).double().mean())

    model = net(dropout=0.0)
    trained = []
    history = train(
        model,
        batches(),
        Recipe(epochs=2, optimizer=make),
        val=batches(),
        metric=accuracy_while,
        callbacks=[lambda p: trained.append(weights(model)) if not p.metrics else None],
    )
    assert seen == [False, False]
    assert not made[-1].training
    mean = sum(w["0.weight"] for w in trained) / len(trained)
    assert_close(model[0].weight.detach(), mean)
    assert history.epochs[-1]["val_accuracy_while"] == evaluate(model, batches())


def test_a_callables_optimizer_keeps_its_own_rate_unless_the_recipe_has_one():
    def make(params):
        return SGD(params, lr=0.3)

    schedule = {"schedule": "constant", "warmup": 0}
    assert set(train(net(), batches(), Recipe(optimizer=make, **schedule)).rates) == {0.3}
    assert set(train(net(), batches(), Recipe(optimizer=make, lr=0.2, **schedule)).rates) == {0.2}


def test_bfloat16_is_for_the_forward_pass_only():
    seen, model, other = [], net(dropout=0.0), net(dropout=0.0)
    model[0].register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    train(model, batches(), Recipe(epochs=1, lr=0.01, precision="bfloat16"))
    train(other, batches(), Recipe(epochs=1, lr=0.01))
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    # Four steps of Adam move a weight by at most about 0.04; bfloat16 has 8 bits.
    moved = (other[4].weight - net()[4].weight).abs().max()
    assert (model[4].weight - other[4].weight).abs().max() < 0.3 * moved


def test_progress_comes_after_every_step_and_every_epoch():
    told = []
    history = train(net(), batches(), Recipe(epochs=2), val=batches(), callbacks=[told.append])
    assert [(p.epoch, p.step, bool(p.metrics)) for p in told] == [
        *((1, step, False) for step in (1, 2, 3, 4)),
        (1, 4, True),
        *((2, step, False) for step in (5, 6, 7, 8)),
        (2, 8, True),
    ]
    assert {(p.epochs, p.steps) for p in told} == {(2, 8)}
    assert all(p.samples_per_second > 0 and p.seconds_left >= 0 for p in told)
    assert told[-1].seconds_left == 0
    assert [p.loss for p in told if not p.metrics] == list(history.losses)
    assert [p.lr for p in told if not p.metrics] == list(history.rates)
    assert told[-1].loss == pytest.approx(sum(history.losses[4:]) / 4)
    assert told[-1].metrics == {"accuracy": history.epochs[-1]["val_accuracy"]}


def test_the_history_has_rows_and_a_figure():
    history = train(net(), batches(), Recipe(epochs=3), val=batches(), metric=["accuracy", "loss"])
    assert [row["epoch"] for row in history.rows()] == [1, 2, 3]
    assert [row["step"] for row in history.rows()] == [4, 8, 12]
    assert set(history.rows()[0]) == {"epoch", "step", "loss", "lr", "val_accuracy", "val_loss"}
    ax = matplotlib.figure.Figure().subplots()
    history.figure(ax)
    left, right = ax.figure.axes
    assert list(left.lines[0].get_ydata()) == list(history.losses)
    assert list(left.lines[1].get_ydata()) == [row["loss"] for row in history.rows()]
    assert list(right.lines[0].get_ydata()) == [row["val_accuracy"] for row in history.rows()]


def test_a_history_is_drawn_whatever_it_holds():
    History().figure(matplotlib.figure.Figure().subplots())
    common = {"loss": 1.0, "lr": 0.1}
    rows = ({"epoch": 1, "step": 1, **common}, {"epoch": 2, "step": 2, **common, "val_mse": 0.5})
    ax = matplotlib.figure.Figure().subplots()
    History((1.0, 1.0), (0.1, 0.1), rows).figure(ax)
    assert np.array_equal(ax.figure.axes[1].lines[0].get_ydata(), [np.nan, 0.5], equal_nan=True)


def test_a_loss_that_is_not_finite_stops_the_run_at_the_epochs_first_weights():
    model, kept = net(), []
    model.eval()

    def keep(progress):
        if progress.step == 4:
            kept.append(weights(model))

    passes = iter([batches(), [*batches()[:2], (X * math.nan, Y)]])

    class Loader:
        def __iter__(self):
            return iter(next(passes))

    recipe = Recipe(epochs=3, lr=0.01, schedule="constant", warmup=0)
    with pytest.raises(Diverged, match=r"loss is nan at step 7, learning rate 0\.01") as caught:
        train(model, Loader(), recipe, callbacks=[keep])
    assert isinstance(caught.value, FloatingPointError)
    assert (caught.value.step, caught.value.lr) == (7, 0.01)
    assert len(caught.value.history.losses) == 6
    assert len(caught.value.history.epochs) == 1
    assert_close(weights(model), kept[-1], rtol=0, atol=0)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_weights_that_the_last_step_of_an_epoch_broke_are_not_kept():
    model = linear()
    before = weights(model)
    recipe = Recipe(optimizer="sgd", lr=1e38, epochs=1, loss=lambda o, _: 1e3 * o.sum())
    with pytest.raises(Diverged, match="the weights weight are not finite at step 1"):
        train(model, [X], recipe)
    assert_close(weights(model), before, rtol=0, atol=0)


def test_a_gradient_that_cannot_be_clipped_stops_the_run():
    model = linear()
    before = weights(model)
    recipe = Recipe(clip=1.0, loss=lambda o, _: (o * 0).sum().sqrt())
    with pytest.raises(Diverged, match="the gradient is not finite at step 1"):
        train(model, [X], recipe)
    assert_close(weights(model), before, rtol=0, atol=0)


class Unsized(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


def test_a_loader_without_a_length_needs_a_schedule_without_one():
    loader, told = DataLoader(Unsized(), batch_size=10), []
    assert len(train(net(), loader, PLAIN, callbacks=[told.append]).losses) == 8
    assert {(p.steps, p.seconds_left) for p in told} == {(None, None)}
    with pytest.raises(ValueError, match="needs the number of steps, so a loader with a length"):
        train(net(), loader)


class Exhausted:
    def __init__(self):
        self.batches = iter(batches())

    def __iter__(self):
        return self.batches


class TooLong:
    def __iter__(self):
        return iter(batches())

    def __len__(self):
        return 3


@pytest.mark.parametrize(
    ("loader", "says"),
    [
        ((b for b in batches()), "iterated again.*got a generator"),
        ([], "at least one batch; the loader has none"),
        (Exhausted(), "no batches in epoch 2"),
        (TooLong(), "length says 3 steps"),
        ([X], "without a target need a teacher"),
        ([(X[:0], Y[:0])], r"at least one sample; got batches of \[0\]"),
    ],
)
def test_a_loader_that_cannot_be_trained_on_is_refused(loader, says):
    recipe = PLAIN if isinstance(loader, Exhausted) else Recipe()
    with pytest.raises(ValueError, match=says):
        train(net(), loader, recipe)


def test_a_generator_is_enough_for_one_epoch():
    history = train(net(), (b for b in batches()), Recipe(epochs=1, schedule="constant", warmup=0))
    assert len(history.losses) == 4


def test_what_does_not_fit_is_refused():
    model = net()
    with pytest.raises(ValueError, match=r"iterated again.*got a list_iterator"):
        train(model, batches(), val=iter(batches()))
    with pytest.raises(ValueError, match=r"shares 0\.weight with the model"):
        train(model, batches(), teacher=model)
    with pytest.raises(
        ValueError, match=r"teacher's need the same shape; got \(10, 3\) and \(10, 4\)"
    ):
        train(model, batches(), teacher=net(classes=4))
    with pytest.raises(TypeError, match=r"conventions; dict has no \['step'"):
        train(model, batches(), Recipe(optimizer=lambda groups: {}))
    with pytest.raises(ValueError, match="requires_grad=True; it has none"):
        train(copy.deepcopy(model).requires_grad_(False), batches())
    with pytest.raises(ValueError, match="checkpoint_every needs a checkpoint"):
        train(model, batches(), checkpoint_every=1)
    assert_close([*model.parameters()], [*net().parameters()], rtol=0, atol=0)


def test_frozen_parameters_of_a_teacher_may_be_shared():
    model, teacher = net(), net(seed=1)
    teacher[0] = model[0].requires_grad_(False)
    before = weights(model[0])
    train(model, batches(), teacher=teacher)
    assert_close(weights(model[0]), before, rtol=0, atol=0)


def test_the_handwritten_digits_are_learnt():
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    data = TensorDataset(
        torch.tensor(images / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]
    )
    rest = torch.utils.data.Subset(data, range(1400, len(data)))
    part = torch.utils.data.Subset(data, range(1400))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    loader = DataLoader(part, batch_size=64, shuffle=True)
    history = train(model, loader, Recipe(epochs=10, lr=3e-3), val=DataLoader(rest, 400))
    assert history.epochs[-1]["val_accuracy"] > 0.9
    assert history.losses[-1] < 0.2 * history.losses[0]
