"""Layers of which another module reads a part itself, so that they must keep having it."""

import inspect
import re
from weakref import WeakKeyDictionary

from torch import nn

__all__ = ["read_layers"]

_PARTS = (
    "weight", "bias", "in_features", "out_features", "num_embeddings", "embedding_dim",
    "padding_idx", "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation",
)  # fmt: skip
_KNOWN: WeakKeyDictionary[type[nn.Module], frozenset[str]] = WeakKeyDictionary()
_READ = re.compile(rf"\bself\.(\w+(?:\.\w+)*?)\.(?:{'|'.join(_PARTS)})\b")


def read_layers(model: nn.Module) -> set[str]:
    """Paths of the modules of which a forward above them says `self.PATH.weight` or the like.

    As transformers' do, to learn a type or a size. What torch's own modules read is known and
    rewritten by `expand`.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found = (
        f"{path}.{name}" if path else name
        for path, module in modules.items()
        for name in _names(type(module))
    )
    return {path for path in found if path in modules}


def _names(kind: type[nn.Module]) -> frozenset[str]:
    """What the forward of a class reads; found once, as looking for the source takes long."""
    if kind not in _KNOWN:
        _KNOWN[kind] = _found(kind)
    return _KNOWN[kind]


def _found(kind: type[nn.Module]) -> frozenset[str]:
    if kind.__module__.startswith("torch."):
        return frozenset()
    try:
        return frozenset(_READ.findall(inspect.getsource(kind.forward)))
    except (OSError, TypeError):  # no source: a notebook's, a compiled module
        return frozenset()
