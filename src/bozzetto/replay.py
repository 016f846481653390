"""Replay: a network run up to a layer, again and again, where what is final runs only once."""

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from bozzetto.batches import call, first_input

__all__ = ["Replay"]


class _Reached(BaseException):
    """Stops a forward pass where nothing behind matters; never leaves this module."""


class Replay:
    """A network on some batches, of which an ever longer beginning is final.

    Modules whose layers are all final give back a copy of what they gave before instead of running;
    the outputs of the largest such modules are kept in memory for all batches.

    Args:
        network: in evaluation mode; its modules' `forward` is covered while it runs.
        batches: on which it runs.
        order: the modules that become final one after the other, in the order of their first calls.
    """

    def __init__(self, network: nn.Module, batches: Sequence[Any], order: Sequence[str]) -> None:
        self.network, self.batches = network, batches
        self._order = [(path, network.get_submodule(path)) for path in order]
        self._kept: dict[str, dict[tuple[int, int], Any]] = {}

    def inputs(self, path: str, calls: int, done: Collection[str]) -> Iterator[list[Tensor]]:
        """What the module at a path gets in its first `calls` calls, batch by batch.

        Args:
            path: of the module.
            calls: how many of its calls in a batch matter.
            done: paths of the order that are final; every module that runs before this one is.
        """
        final = self._final(done)
        self._kept = {name: self._kept.get(name, {}) for name in final}
        for number, batch in enumerate(self.batches):
            seen: list[Tensor] = []

            def keep(_: nn.Module, args: Any, kwargs: Any, seen: list[Tensor] = seen) -> None:
                seen.append(first_input(args, kwargs))
                if len(seen) == calls:
                    raise _Reached

            with self._covered(final, number, seen):
                handle = self.network.get_submodule(path).register_forward_pre_hook(
                    keep, with_kwargs=True
                )
                try:
                    with suppress(_Reached), torch.no_grad():
                        call(self.network, batch)
                finally:
                    handle.remove()
            yield seen

    def _final(self, done: Collection[str]) -> dict[str, nn.Module]:
        """The largest modules with layers in the order of which all are done."""
        open_, closed = set[int](), set[int]()
        for path, module in self._order:
            (closed if path in done else open_).add(id(module))
        found: dict[str, nn.Module] = {}
        for path, module in self.network.named_modules():
            inside = {id(m) for m in module.modules()}
            covered = any(not path or path.startswith(f"{other}.") for other in found)
            if not covered and inside & closed and not inside & open_:
                found[path] = module
        return found

    @contextmanager
    def _covered(
        self, final: dict[str, nn.Module], number: int, seen: Collection[Tensor]
    ) -> Iterator[None]:
        """The final modules with a `forward` that remembers, for one batch.

        Nothing new is kept once the module in question was reached: its own later calls may change.
        """
        calls: Counter[str] = Counter()

        def remember(path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
            kept = self._kept[path]

            def run(*args: Any, **kwargs: Any) -> Any:
                key = (number, calls[path])
                calls[path] += 1
                if key in kept:
                    return copy.deepcopy(kept[key])
                output = forward(*args, **kwargs)
                if not seen:
                    kept[key] = copy.deepcopy(output)
                return output

            return run

        own = {path: module.__dict__.get("forward") for path, module in final.items()}
        for path, module in final.items():
            module.forward = remember(path, module.forward)
        try:
            yield
        finally:
            for path, module in final.items():
                del module.forward
                if (forward := own[path]) is not None:
                    module.forward = forward
