"""Metrics, against scikit-learn and direct computation."""

from types import SimpleNamespace

import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from bozzetto.train import METRICS, evaluate

DRAWS = torch.Generator().manual_seed(0)
LOGITS = torch.randn(50, 8, generator=DRAWS)
CLASSES = torch.randint(8, (50,), generator=DRAWS)
VALUES = torch.randn(50, 8, generator=DRAWS)
UNEVEN = (7, 20, 1, 22)  # a mean of the batches' means would be wrong


class Same(nn.Module):
    """Returns its input; in training mode, something else."""

    def forward(self, x):
        return -x if self.training else x


def batches(target, sizes=UNEVEN):
    return list(zip(LOGITS.split(sizes), target.split(sizes), strict=True))


ORACLES = {
    "accuracy": (CLASSES, accuracy_score(CLASSES, LOGITS.argmax(1))),
    "top5": (CLASSES, top_k_accuracy_score(CLASSES, LOGITS, k=5)),
    "loss": (CLASSES, log_loss(CLASSES, LOGITS.double().softmax(1), labels=range(8))),
    "mse": (VALUES, float(F.mse_loss(LOGITS.double(), VALUES.double()))),
    "cosine": (VALUES, float(F.cosine_similarity(LOGITS.double(), VALUES.double()).mean())),
}


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_a_mean_over_samples_not_batches(name):
    target, expected = ORACLES[name]
    assert evaluate(Same(), batches(target), name) == pytest.approx(expected, rel=1e-6)


def test_the_loss_of_real_targets_is_the_squared_error():
    assert evaluate(Same(), batches(VALUES), "loss") == evaluate(Same(), batches(VALUES), "mse")


def test_several_metrics_come_by_name_in_one_pass():
    passes = []

    class Loader(list):
        def __iter__(self):
            passes.append(1)
            return super().__iter__()

    def worst(outputs, targets):
        return float((outputs.argmax(1) - targets).abs().max())

    found = evaluate(Same(), Loader(batches(CLASSES)), ["accuracy", worst])
    assert passes == [1]
    assert found == {
        "accuracy": pytest.approx(ORACLES["accuracy"][1]),
        "worst": float((LOGITS.argmax(1) - CLASSES).abs().max()),
    }


def test_a_callable_sees_all_predictions_and_targets_at_once():
    def rank_correlation(outputs, targets):
        return spearmanr(outputs.flatten(), targets.flatten()).statistic

    expected = spearmanr(LOGITS.flatten(), VALUES.flatten()).statistic
    assert evaluate(Same(), batches(VALUES), rank_correlation) == pytest.approx(expected)


def test_models_that_return_logits_and_loss_are_evaluated():
    class Model(Same):
        def forward(self, x, labels):
            return SimpleNamespace(logits=x, loss=F.cross_entropy(x, labels))

    loader = [{"x": x, "labels": y} for x, y in batches(CLASSES)]
    found = evaluate(Model(), loader, ["accuracy", "loss"])
    expected = {name: pytest.approx(ORACLES[name][1], rel=1e-6) for name in ("accuracy", "loss")}
    assert found == expected


def test_evaluation_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 8))
    model[1].eval()
    flags = [m.training for m in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = evaluate(model, batches(CLASSES), "loss")
    assert evaluate(model, batches(CLASSES), "loss") == first
    with pytest.raises(ValueError, match="no target"):
        evaluate(model, [LOGITS])
    assert [m.training for m in model.modules()] == flags
    assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def nan(outputs, targets):
    return float("nan")


def tensor(outputs, targets):
    return torch.tensor([0.25])


def several(outputs, targets):
    return torch.ones(2)


def test_a_metric_may_return_a_tensor_of_one_number():
    assert evaluate(Same(), batches(CLASSES), tensor) == 0.25


@pytest.mark.parametrize(
    ("loader", "metric", "error", "says"),
    [
        ([], "accuracy", ValueError, "at least one batch; the loader gave none"),
        ([LOGITS], "accuracy", ValueError, "batch 1 has no target"),
        (batches(CLASSES + 1), "accuracy", ValueError, "8 classes.*in 0 … 7"),
        (batches(VALUES), "accuracy", TypeError, "integer tensor; got torch.float32"),
        ([(LOGITS, VALUES[:, :1])], "mse", ValueError, "same shape"),
        ([(LOGITS[:, :3], CLASSES % 3)], "top5", ValueError, "at least 5 classes; .* gives 3"),
        ([(LOGITS / 0 * 0, CLASSES)], "accuracy", ValueError, "for batch 1 have NaN"),
        (batches(CLASSES), "precision", ValueError, "one of .*'accuracy'.*; got 'precision'"),
        (batches(CLASSES), nan, ValueError, "the metric nan is NaN"),
        (batches(CLASSES), several, TypeError, "a number; several returned a Tensor"),
        (batches(CLASSES), ["loss", "loss"], ValueError, "names that differ"),
        (batches(CLASSES), [], ValueError, "at least one"),
    ],
)
def test_what_cannot_be_measured_is_refused(loader, metric, error, says):
    with pytest.raises(error, match=says):
        evaluate(Same(), loader, metric)
