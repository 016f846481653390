"""Modules that read a child's weight themselves, so that the child must keep having one."""

import inspect
import re
from functools import cache

from torch import nn

__all__ = ["read_weights"]

_READ = re.compile(r"\bself\.(\w+)\.weight\b")


def read_weights(model: nn.Module) -> set[str]:
    """Paths of the modules whose parent's forward says `self.NAME.weight`.

    As T5's does, to learn a type. What torch's own modules read is known and rewritten.
    """
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules(remove_duplicate=False)
        for name in _names(type(module)) & module._modules.keys()
    }


@cache
def _names(kind: type[nn.Module]) -> frozenset[str]:
    if kind.__module__.startswith("torch."):
        return frozenset()
    try:
        return frozenset(_READ.findall(inspect.getsource(kind.forward)))
    except (OSError, TypeError):  # no source: a notebook's, a compiled module
        return frozenset()
