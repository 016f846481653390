"""What training needs of a loader and of a teacher, and a loader's batches in groups."""

from collections.abc import Iterable, Iterator
from itertools import islice

from torch import nn

from bozzetto.batches import Batch, batches_of

__all__ = ["check_reusable", "check_teacher", "groups_of", "steps_of"]


def check_reusable(name: str, batches: Iterable[Batch] | None, passes: int) -> None:
    """Raise for no batches, or such as end after one of several passes."""
    if batches is not None and isinstance(batches_of(batches), Iterator) and passes > 1:
        raise ValueError(
            f"{passes} passes need a {name} that can be iterated again, as a list or a DataLoader; "
            f"got a {type(batches).__name__}, which ends after the first"
        )


def check_teacher(model: nn.Module, teacher: nn.Module | None) -> None:
    """Raise ValueError for a teacher that training would change."""
    theirs = set() if teacher is None else {id(p) for p in teacher.parameters()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) in theirs:
            raise ValueError(
                f"the teacher needs weights of its own; it shares {name} with the model"
            )


def steps_of(loader: Iterable[Batch], accumulate: int) -> int | None:
    """Steps of one epoch; None if the loader does not know its length."""
    try:
        length = len(loader)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return None
    if not length:
        raise ValueError("training needs at least one batch; the loader has none")
    return -(-length // accumulate)


def groups_of(loader: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches, the last of what is left."""
    batches = iter(loader)
    while group := list(islice(batches, size)):
        yield group
