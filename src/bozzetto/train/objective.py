"""The objective of one batch: a recipe's loss, mixed with what a teacher says."""

from typing import Any

import torch
from torch import Tensor

from bozzetto.batches import output_loss, predicted
from bozzetto.train.losses import (
    LOSSES,
    class_rows,
    cosine,
    cross_entropy,
    divergence,
    is_classes,
    mse,
    same_shape,
    similarity,
)
from bozzetto.train.recipe import Recipe

__all__ = ["objective"]


def objective(recipe: Recipe, output: Any, target: Any, taught: Any = None) -> Tensor:
    """What `Recipe.loss` and `Recipe.distillation` say of one batch; a scalar.

    Args:
        recipe: which loss, and how it is mixed.
        output: what the model returned.
        target: of the batch; None if it has none.
        taught: what the teacher returned for the same batch; None without a teacher.

    Raises:
        ValueError: if there is neither a target nor a teacher, or shapes or classes do not fit.
        TypeError: if predictions or class numbers are needed and something else came.
    """
    weight = 0.0 if taught is None else recipe.distillation
    if taught is not None and target is None and output_loss(output) is None:
        weight = 1.0
    terms = []
    if weight < 1:
        terms.append((1 - weight) * _from_target(recipe, output, target))
    if weight > 0:
        terms.append(weight * _from_teacher(recipe, output, target, taught))
    return torch.stack(terms).sum()


def _from_target(recipe: Recipe, output: Any, target: Any) -> Tensor:
    own = output_loss(output)
    if callable(recipe.loss):
        return _one_number(recipe.loss(output, target))
    if recipe.loss == "auto" and own is not None:
        _refuse_smoothing(recipe, "the loss is the model's own")
        return _one_number(own)
    if target is None:
        raise ValueError("batches without a target need a teacher: a batch is (input, target)")
    name = recipe.loss
    if name == "auto":
        name = "cross_entropy" if is_classes(target) else "mse"
    if name == "cross_entropy":
        return cross_entropy(_scores(output), target, recipe.label_smoothing)
    _refuse_smoothing(recipe, "the targets are not class numbers")
    return LOSSES[name](_scores(output), target)


def _from_teacher(recipe: Recipe, output: Any, target: Any, taught: Any) -> Tensor:
    student = _scores(output)
    teacher = _scores(taught).to(student)
    if recipe.loss == "similarity":
        return similarity(student, teacher)
    same_shape("student's output", student, "teacher's", teacher)
    if recipe.loss == "cosine":
        return cosine(student, teacher)
    if recipe.loss == "cross_entropy" or is_classes(target):
        rows = [_logits(scores, target) for scores in (student, teacher)]
        return divergence(*rows, temperature=recipe.temperature)
    return mse(student, teacher)


def _logits(scores: Tensor, target: Any) -> Tensor:
    """Rows of logits, (N, c), for the entries that have a class or for all."""
    if is_classes(target):
        return class_rows(scores, target)[0]
    if target is None and scores.ndim != 2:
        raise ValueError(
            "without targets, logits to distil need the shape (b, c), or the class axis could be "
            f"any; got {tuple(scores.shape)}"
        )
    return scores.movedim(1, -1).flatten(0, -2)


def _scores(output: Any) -> Tensor:
    """Predictions in a type that can hold a loss: autocast may have left bfloat16."""
    scores = predicted(output)
    return scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores


def _one_number(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor):
        raise TypeError(f"a loss needs to be a tensor; got a {type(loss).__name__}")
    if loss.ndim:
        raise ValueError(f"a loss needs to be one number; got the shape {tuple(loss.shape)}")
    return loss


def _refuse_smoothing(recipe: Recipe, why: str) -> None:
    if recipe.label_smoothing:
        raise ValueError(
            f"label_smoothing {recipe.label_smoothing} needs loss='cross_entropy'; here {why}"
        )
