"""Dropout at another chance for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["dropping"]


@contextmanager
def dropping(model: nn.Module, chance: float) -> Iterator[None]:
    """Every dropout of a model at this chance: its dropout layers, and modules that hold a chance.

    Attention and recurrent layers keep theirs as a number named `dropout`.
    """
    places = [
        (module, "p" if isinstance(module, _DropoutNd) else "dropout")
        for module in model.modules()
        if isinstance(module, _DropoutNd) or type(getattr(module, "dropout", None)) is float
    ]
    own = [getattr(module, name) for module, name in places]
    try:
        for module, name in places:
            setattr(module, name, chance)
        yield
    finally:
        for (module, name), value in zip(places, own, strict=True):
            setattr(module, name, value)
