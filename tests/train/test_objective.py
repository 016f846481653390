"""The objective of a batch, against torch and against the formulas."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from bozzetto.train import Recipe
from bozzetto.train.losses import class_rows, divergence
from bozzetto.train.objective import objective

DRAWS = torch.Generator().manual_seed(0)
LOGITS, TAUGHT = torch.randn(2, 6, 5, generator=DRAWS)
CLASSES = torch.tensor([0, 4, 2, 2, 1, 3])
VALUES = torch.randn(6, 5, generator=DRAWS)


def kullback_leibler(student, teacher, temperature):
    """The definition, entry by entry."""
    total = 0.0
    for s, t in zip(student.double(), teacher.double(), strict=True):
        p, q = (t / temperature).softmax(0), (s / temperature).softmax(0)
        total += sum(float(a * (a / b).log()) for a, b in zip(p, q, strict=True))
    return torch.tensor(total / len(student) * temperature**2, dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("loss", ["auto", "cross_entropy"])
def test_class_numbers_give_torchs_cross_entropy_bit_for_bit(loss, smoothing):
    found = objective(Recipe(loss=loss, label_smoothing=smoothing), LOGITS, CLASSES)
    expected = F.cross_entropy(LOGITS, CLASSES, label_smoothing=smoothing)
    assert_close(found, expected, rtol=0, atol=0)


def test_class_probabilities_give_torchs_cross_entropy():
    target = VALUES.softmax(-1)
    found = objective(Recipe(loss="cross_entropy", label_smoothing=0.1), LOGITS, target)
    assert_close(found, F.cross_entropy(LOGITS, target, label_smoothing=0.1))


def test_the_class_axis_is_the_second_or_the_last():
    logits, target = (
        torch.randn(2, 7, 3, 4, generator=DRAWS),
        torch.randint(7, (2, 3, 4), generator=DRAWS),
    )
    assert_close(objective(Recipe(), logits, target), F.cross_entropy(logits, target))
    last = logits.movedim(1, -1)
    assert_close(objective(Recipe(), last, target), F.cross_entropy(logits, target))
    with pytest.raises(ValueError, match=r"second or the last of output \(2, 3, 3\)"):
        class_rows(torch.zeros(2, 3, 3), torch.zeros(2, 3, dtype=torch.long))


def test_entries_marked_as_ignored_count_for_nothing():
    target = CLASSES.clone()
    target[[1, 4]] = -100
    assert_close(objective(Recipe(), LOGITS, target), F.cross_entropy(LOGITS, target))
    kept = [0, 2, 3, 5]
    found = objective(Recipe(distillation=1.0), LOGITS, target, TAUGHT)
    assert_close(found, divergence(LOGITS[kept], TAUGHT[kept], 2.0))


def test_a_batch_of_ignored_entries_alone_has_no_loss_and_no_gradient():
    target, logits = torch.full_like(CLASSES, -100), LOGITS.clone().requires_grad_()
    found = objective(Recipe(), logits, target, TAUGHT)
    found.backward()
    assert found.item() == 0
    assert_close(logits.grad, torch.zeros_like(LOGITS))


def test_real_targets_give_the_squared_error():
    for loss in ("auto", "mse"):
        assert_close(objective(Recipe(loss=loss), LOGITS, VALUES), F.mse_loss(LOGITS, VALUES))


def test_the_cosine_loss_is_one_minus_the_similarity():
    expected = sum(
        1 - float(a @ b / (a.norm() * b.norm())) for a, b in zip(LOGITS, VALUES, strict=True)
    )
    found = objective(Recipe(loss="cosine"), LOGITS, VALUES)
    assert_close(found, torch.tensor(expected / 6))


def test_the_similarity_loss_compares_all_pairs_of_the_batch():
    def cos(a, b):
        return float(a @ b / (a.norm() * b.norm()))

    taught = torch.randn(6, 9, generator=torch.Generator().manual_seed(1))  # of another width
    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    expected = sum(
        (cos(LOGITS[i], LOGITS[j]) - cos(taught[i], taught[j])) ** 2 for i, j in pairs
    ) / len(pairs)
    recipe = Recipe(loss="similarity", distillation=1.0)
    assert_close(objective(recipe, LOGITS, None, taught), torch.tensor(expected))
    turn = torch.linalg.qr(torch.randn(5, 5, generator=DRAWS))[0]
    assert_close(objective(recipe, 3 * LOGITS @ turn, None, LOGITS), torch.tensor(0.0))
    assert objective(recipe, LOGITS[:1], None, taught[:1]) == 0


def test_a_callable_gets_what_the_model_returned():
    output = SimpleNamespace(energy=torch.tensor(3.0))
    found = objective(Recipe(loss=lambda o, t: o.energy * t), output, 2)
    assert_close(found, torch.tensor(6.0))


def test_the_models_own_loss_comes_first_unless_another_is_named():
    output = {"logits": LOGITS, "loss": torch.tensor(7.0)}
    assert_close(objective(Recipe(), output, CLASSES), torch.tensor(7.0))
    found = objective(Recipe(loss="cross_entropy"), output, CLASSES)
    assert_close(found, F.cross_entropy(LOGITS, CLASSES))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_teachers_term_is_the_scaled_divergence(temperature):
    recipe = Recipe(distillation=1.0, temperature=temperature)
    found = objective(recipe, LOGITS.double(), CLASSES, TAUGHT.double())
    assert_close(found, kullback_leibler(LOGITS, TAUGHT, temperature))
    assert_close(objective(recipe, TAUGHT, CLASSES, TAUGHT), torch.tensor(0.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("loss", "target", "soft"),
    [
        ("auto", CLASSES, kullback_leibler(LOGITS, TAUGHT, 2.0).float()),
        ("auto", VALUES, F.mse_loss(LOGITS, TAUGHT)),
        ("mse", VALUES, F.mse_loss(LOGITS, TAUGHT)),
        ("cosine", VALUES, (1 - F.cosine_similarity(LOGITS, TAUGHT)).mean()),
        ("cross_entropy", VALUES.softmax(-1), kullback_leibler(LOGITS, TAUGHT, 2.0).float()),
        (lambda o, t: o.sum() * t.sum(), VALUES, F.mse_loss(LOGITS, TAUGHT)),
        (
            lambda o, t: F.cross_entropy(o, t),
            CLASSES,
            kullback_leibler(LOGITS, TAUGHT, 2.0).float(),
        ),
    ],
)
def test_both_terms_are_mixed_by_the_weight(loss, target, soft, weight):
    hard = objective(Recipe(loss=loss), LOGITS, target)
    found = objective(Recipe(loss=loss, distillation=weight), LOGITS, target, TAUGHT)
    assert_close(found, (1 - weight) * hard + weight * soft)


def test_without_targets_the_teacher_is_all_there_is():
    found = objective(Recipe(distillation=0.1), LOGITS, None, TAUGHT)
    assert_close(found, F.mse_loss(LOGITS, TAUGHT))
    found = objective(Recipe(distillation=0.1, loss="cross_entropy"), LOGITS, None, TAUGHT)
    assert_close(found, kullback_leibler(LOGITS, TAUGHT, 2.0).float())


def test_reduced_precision_is_left_before_the_loss():
    found = objective(Recipe(), LOGITS.bfloat16(), CLASSES, TAUGHT.bfloat16())
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("recipe", "output", "target", "taught", "error", "says"),
    [
        (Recipe(), LOGITS, None, None, ValueError, "without a target need a teacher"),
        (
            Recipe(),
            LOGITS,
            CLASSES + 1,
            None,
            ValueError,
            r"5 classes.*in 0 … 4; they go from 1 to 5",
        ),
        (Recipe(), LOGITS, CLASSES - 1, None, ValueError, "they go from -1 to 3"),
        (Recipe(), LOGITS, CLASSES[:, None], None, ValueError, r"\(6, 5\) and targets \(6, 1\)"),
        (
            Recipe(),
            LOGITS,
            VALUES[:, :1],
            None,
            ValueError,
            r"same shape; got \(6, 5\) and \(6, 1\)",
        ),
        (Recipe(), LOGITS, 3, None, TypeError, "the target needs to be a tensor; got int"),
        (Recipe(loss="cross_entropy"), LOGITS, [1], None, TypeError, "integer tensor; got list"),
        (
            Recipe(),
            LOGITS,
            CLASSES,
            TAUGHT[:, :4],
            ValueError,
            r"teacher's need.*\(6, 5\) and \(6, 4\)",
        ),
        (Recipe(), (LOGITS,), CLASSES, None, TypeError, "got a tuple"),
        (Recipe(loss="cross_entropy"), LOGITS[None], None, TAUGHT[None], ValueError, r"\(b, c\)"),
        (
            Recipe(loss=lambda o, t: o),
            LOGITS,
            None,
            None,
            ValueError,
            r"one number; got .*\(6, 5\)",
        ),
        (Recipe(loss=lambda o, t: 1.0), LOGITS, None, None, TypeError, "tensor; got a float"),
        (Recipe(loss="similarity"), LOGITS, None, TAUGHT[:3], ValueError, r"same b; got.*\(3, 5\)"),
        (Recipe(loss="similarity"), LOGITS, [1], None, TypeError, "a tensor; got list"),
        (Recipe(label_smoothing=0.1), LOGITS, VALUES, None, ValueError, "not class numbers"),
        (
            Recipe(label_smoothing=0.1),
            {"logits": LOGITS, "loss": torch.tensor(1.0)},
            CLASSES,
            None,
            ValueError,
            "the loss is the model's own",
        ),
    ],
)
def test_what_does_not_fit_is_refused(recipe, output, target, taught, error, says):
    with pytest.raises(error, match=says):
        objective(recipe, output, target, taught)
