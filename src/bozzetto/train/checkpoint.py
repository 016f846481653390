"""Checkpoints: a tree of tensors and plain values in one safetensors file, written all or not."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

__all__ = ["CheckpointMismatch", "read_checkpoint", "write_checkpoint"]

_FORMAT = "bozzetto checkpoint 1"


class CheckpointMismatch(ValueError):
    """A file that is no checkpoint, or one of another model, recipe or loader."""


def write_checkpoint(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a tree of dicts, lists, tuples, tensors, dtypes, numbers, strings, booleans and None.

    The file appears under its name when it is on the disk as a whole; until then, and if that
    fails, what was there before stays.

    Raises:
        TypeError: if the tree holds anything else.
        OSError: if it cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    data = json.dumps(_pack(tree, tensors))
    content = save(tensors, metadata={"format": _FORMAT, "tree": data})
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The tree of `write_checkpoint`, with its tensors on the CPU.

    Raises:
        CheckpointMismatch: if the file is truncated or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("format") != _FORMAT:
                raise CheckpointMismatch(
                    f"{path} is not a {_FORMAT}; it says {about.get('format')}"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointMismatch(f"{path} is not a whole checkpoint: {error}") from error
    try:
        return dict(_unpack(json.loads(about["tree"]), tensors))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise CheckpointMismatch(f"{path} is a damaged checkpoint: {error!r}") from error


def _sync_folder(folder: Path) -> None:
    """Make a renaming last; only POSIX systems can (and need to) sync a folder."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON for a tree; its tensors go to `tensors`. What JSON lacks is a list [kind, …]."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return ["tensor", name]
    if isinstance(value, torch.dtype):
        return ["dtype", str(value).removeprefix("torch.")]
    if isinstance(value, Mapping):
        return ["dict", *([_pack(k, tensors), _pack(v, tensors)] for k, v in value.items())]
    if isinstance(value, tuple | list):
        kind = "list" if isinstance(value, list) else "tuple"
        return [kind, *(_pack(v, tensors) for v in value)]
    raise TypeError(
        "a checkpoint holds tensors, numbers, strings, booleans, None, dtypes, and dicts, lists "
        f"and tuples of them; the state has a {type(value).__name__}"
    )


def _unpack(data: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(data, list):
        return data
    kind, *items = data
    if kind == "tensor":
        return tensors[items[0]]
    if kind == "dtype":
        if not isinstance(found := getattr(torch, items[0]), torch.dtype):
            raise TypeError(f"{items[0]} is no dtype")
        return found
    if kind == "dict":
        return {_unpack(k, tensors): _unpack(v, tensors) for k, v in items}
    values = [_unpack(item, tensors) for item in items]
    return values if kind == "list" else tuple(values)
