"""Losses by name, and the divergence from a teacher: pure functions of outputs and targets."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "LOSSES",
    "Loss",
    "class_rows",
    "cosine",
    "cross_entropy",
    "divergence",
    "is_classes",
    "mse",
    "same_shape",
    "similarity",
]

Loss = Callable[[Any, Any], Tensor]

IGNORED = -100  # the class number of an entry that counts for nothing, as in torch


def same_shape(what: str, output: Tensor, other: str, value: Any) -> None:
    """Raise unless the two are tensors of one shape: broadcasting would hide the mistake."""
    if not isinstance(value, Tensor):
        raise TypeError(f"the {other} needs to be a tensor; got {type(value).__name__}")
    if output.shape != value.shape:
        shapes = f"{tuple(output.shape)} and {tuple(value.shape)}"
        raise ValueError(f"the {what} and the {other} need the same shape; got {shapes}")


def is_classes(target: Any) -> bool:
    """Whether a target is class numbers: a tensor of integers."""
    return isinstance(target, Tensor) and not (target.is_floating_point() or target.is_complex())


def class_rows(output: Tensor, target: Any) -> tuple[Tensor, Tensor]:
    """Logits (N, c) and class numbers (N,), without the entries marked -100.

    The class axis of `output` is the second, as in torch: (b, c, …) for targets (b, …); or else
    the last, as of language models: (b, t, c) for (b, t).

    Raises:
        TypeError: if the target is not an integer tensor.
        ValueError: if the shapes do not fit, fit both ways, or a class number is out of range.
    """
    if not is_classes(target):
        came = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise TypeError(f"class numbers need an integer tensor; got {came}")
    rows = output.movedim(_class_axis(output, target), -1).flatten(0, -2)  # (N, c)
    numbers = target.flatten().long()
    counted = numbers != IGNORED
    if not bool(counted.all()):
        rows, numbers = rows[counted], numbers[counted]
    if len(numbers):
        low, high, classes = int(numbers.min()), int(numbers.max()), rows.shape[1]
        if low < 0 or high >= classes:
            raise ValueError(
                f"the model gives {classes} classes, so targets need to be in 0 … {classes - 1}; "
                f"they go from {low} to {high}"
            )
    return rows, numbers


def _class_axis(output: Tensor, target: Tensor) -> int:
    shapes = f"output {tuple(output.shape)} and targets {tuple(target.shape)}"
    second = output.ndim > 1 and output.shape[:1] + output.shape[2:] == target.shape
    last = output.ndim > 1 and output.shape[:-1] == target.shape
    if not second and not last:
        raise ValueError(f"targets need the output's shape without its class axis; got {shapes}")
    if second and last and output.ndim > 2:
        raise ValueError(f"the class axis could be the second or the last of {shapes}: give a loss")
    return 1 if second else -1


def cross_entropy(output: Tensor, target: Any, smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy of class numbers, or of class probabilities in the output's shape.

    Zero where every entry is marked -100.
    """
    if isinstance(target, Tensor) and target.is_floating_point():
        same_shape("output", output, "class probabilities in the target", target)
        return F.cross_entropy(output, target, label_smoothing=smoothing)
    rows, numbers = class_rows(output, target)
    if not len(rows):
        return rows.sum()
    return F.cross_entropy(rows, numbers, label_smoothing=smoothing)


def mse(output: Tensor, target: Any) -> Tensor:
    """Mean squared error over all entries of two tensors of one shape."""
    same_shape("output", output, "target", target)
    return F.mse_loss(output, target.to(output.dtype))


def cosine(output: Tensor, target: Any) -> Tensor:
    """1 - cosine similarity along the last axis, in the mean; of two tensors of one shape."""
    same_shape("output", output, "target", target)
    return (1 - F.cosine_similarity(output, target.to(output.dtype), dim=-1)).mean()


def similarity(output: Tensor, target: Any) -> Tensor:
    """How much the cosine similarities of the batch's rows differ: mean square over all pairs.

    Of (b, n) and (b, any n): what is compared by similarity may turn as a whole (Tung and Mori
    2019). A batch of one row has no pairs and counts for nothing.

    Raises:
        ValueError: unless both have as many rows.
        TypeError: if the target is not a tensor.
    """
    if not isinstance(target, Tensor):
        raise TypeError(f"the target needs to be a tensor; got {type(target).__name__}")
    if output.ndim != 2 or target.ndim != 2 or len(output) != len(target):
        shapes = f"{tuple(output.shape)} and {tuple(target.shape)}"
        raise ValueError(f"similarity needs embeddings (b, n) of the same b; got {shapes}")
    rows = [F.normalize(x.to(output.dtype), dim=-1) for x in (output, target)]
    change = rows[0] @ rows[0].T - rows[1] @ rows[1].T  # (b, b)
    pairs = len(output) * (len(output) - 1)
    return change.triu(1).square().sum() * (2 / max(pairs, 1))


# Each: (output, target) -> scalar.
LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "mse": mse,
    "cosine": cosine,
    "similarity": similarity,
}


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(teacher / T) ‖ softmax(student / T)), mean over the rows of (N, c) logits.

    The factor T² keeps the size of the gradient (Hinton, Vinyals and Dean 2015, section 2). Zero
    without rows.
    """
    if not len(student):
        return student.sum()
    log_student = F.log_softmax(student / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher / temperature, dim=-1)
    found = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return found * temperature**2
