"""Calibration in several processes: the moments of all of them, as if one had seen every batch."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, distributed

from bozzetto.moments import SketchedMoment
from bozzetto.stats import Stats

__all__ = ["reduce_stats"]

_MOMENTS = ("moment", "mean", "gradient")


def reduce_stats(stats: Mapping[str, Stats]) -> dict[str, Stats]:
    """The means over the positions that all processes of the default group have seen together.

    Every process calls it with what its own `collect` gave; each gets the same result, which is
    that of one `collect` over all their batches up to rounding. A layer that some processes did
    not reach counts in those that did. Memory: one moment more at a time.

    Raises:
        ValueError: if there is no process group, or the processes calibrated different networks.
    """
    if not distributed.is_initialized():
        raise ValueError("moments are reduced in a process group; none is initialised")
    about: list[Any] = [None] * distributed.get_world_size()
    own = {path: (s.positions, s.shapes, _sizes(s)) for path, s in stats.items()}
    distributed.all_gather_object(about, own)
    known: dict[str, list[Any]] = defaultdict(list)
    for theirs in about:
        for path, said in theirs.items():
            known[path].append(said)
    return {path: _reduced(path, stats.get(path), said) for path, said in known.items()}


def _reduced(path: str, own: Stats | None, said: list[Any]) -> Stats:
    """One layer's, from this process's and what every process that has it says about its own."""
    positions, sizes = sum(count for count, _, _ in said), {}
    for _, _, theirs in said:
        for name, size in theirs.items():
            if sizes.setdefault(name, size) != size:
                raise ValueError(
                    f"processes need the same network; the {name} of {path!r} is {size} in one and "
                    f"{sizes[name]} in another"
                )
    parts, values = {} if own is None else _parts(own), {}
    for name, size in sizes.items():
        weight = sum(count for count, _, theirs in said if name in theirs)
        share = 0.0 if own is None else own.positions / weight
        values[name] = _sum(parts[name] * share if name in parts else torch.zeros(size).double())
    return _joined(values, positions, next(shapes for _, shapes, _ in said))


def _parts(stats: Stats) -> dict[str, Tensor]:
    """The tensors of a layer's moments by name."""
    found: dict[str, Tensor] = {}
    for name in _MOMENTS:
        value = getattr(stats, name)
        if isinstance(value, Tensor):
            found[name] = value
        elif value is not None:
            found |= {f"{name}.{f.name}": getattr(value, f.name) for f in fields(value)}
    return found


def _joined(parts: Mapping[str, Tensor], positions: int, shapes: Any) -> Stats:
    """Undo `_parts`."""
    made: dict[str, Any] = {name: parts.get(name) for name in _MOMENTS}
    for name in _MOMENTS:
        held = {f.name: parts.get(f"{name}.{f.name}") for f in fields(SketchedMoment)}
        if all(value is not None for value in held.values()):
            made[name] = SketchedMoment(**held)  # pyright: ignore[reportArgumentType]
    return Stats(made["moment"], made["mean"], made["gradient"], positions, shapes)


def _sizes(stats: Stats) -> dict[str, tuple[int, ...]]:
    return {name: tuple(part.shape) for name, part in _parts(stats).items()}


def _sum(value: Tensor) -> Tensor:
    """Over all processes, on the CPU."""
    cuda = distributed.get_backend() == "nccl"
    held = value.cuda() if cuda else value.clone()
    distributed.all_reduce(held)
    return held.cpu()
