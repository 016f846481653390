"""The processes that train together: one alone, or those of a Hugging Face Accelerator."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bozzetto.batches import Batch

__all__ = ["Alone", "Processes", "own_part", "together", "whole_state"]

_WHOLE, _CUT = "whole tensor", "cut along"  # the keys of a sharded tensor in a gathered tree


class Alone:
    """One process; what `Processes` must agree with."""

    count, rank = 1, 0

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """The module to call and the optimiser to step."""
        return model, optimizer

    def share(self, batch: Batch, size: int) -> tuple[Batch, int]:
        """This process's samples of a batch of `size`, and how many of them count."""
        return batch, size

    def sum(self, value: float) -> float:
        """Over all processes."""
        return value

    def lists(self, value: list[Tensor]) -> list[list[Tensor]]:
        """The value of every process, on each of them."""
        return [value]

    def waiting(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Gradients in there are not exchanged: those of a later batch bring them along."""
        return nullcontext()

    def norm(self, found: Tensor) -> Tensor:
        """That of the whole gradient."""
        return found

    def whole(self, tree: Any) -> Any:
        """A tree for a checkpoint, no tensor of it sharded."""
        return tree

    def cut(self, tree: Any, model: nn.Module) -> Any:
        """Undo `whole`: every tensor sharded as it was."""
        return tree


class Processes(Alone):
    """The processes of an `accelerate.Accelerator`, on data parallel or fully sharded (2) models.

    Every process iterates over the same whole batches and takes its samples of each: so the sum of
    the gradients is that of one process, whatever the number of processes. Batch norm sees the
    samples of its own process, and dropout draws for each process differ.

    Raises:
        ValueError: for an accelerator that scales losses or runs anything but these.
    """

    def __init__(self, accelerator: Any) -> None:
        kind = str(accelerator.distributed_type).rpartition(".")[2]
        if kind not in ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "FSDP"):
            raise ValueError(f"training needs data parallel or FSDP processes; got {kind}")
        version = accelerator.state.fsdp_plugin.fsdp_version if kind == "FSDP" else 2
        if version != 2:
            raise ValueError(f"FSDP needs fsdp_version=2; got {version}")
        if accelerator.scaler is not None:
            raise ValueError("float16 needs scaled losses: take bfloat16 or float32 instead")
        if accelerator.gradient_accumulation_steps != 1:
            steps = accelerator.gradient_accumulation_steps
            raise ValueError(f"accumulation is the recipe's; the accelerator has {steps} steps")
        self.accelerator = accelerator
        self.count, self.rank = accelerator.num_processes, accelerator.process_index

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """Wrapped by the accelerator, on its device."""
        module, prepared = self.accelerator.prepare(model, optimizer)
        return module, prepared.optimizer

    def share(self, batch: Batch, size: int) -> tuple[Batch, int]:
        """A run of the samples; where there are too few, one that counts for nothing."""
        start, end = (size * place // self.count for place in (self.rank, self.rank + 1))
        rows = slice(start, end) if end > start else slice(0, 1)
        return _rows(batch, size, rows), end - start

    def sum(self, value: float) -> float:
        """By an all-reduce."""
        own = torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)
        return float(self.accelerator.reduce(own, "sum"))

    def lists(self, value: list[Tensor]) -> list[list[Tensor]]:
        """By an all-gather of objects."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, value)
        return found

    def waiting(self, module: nn.Module) -> AbstractContextManager[Any]:
        """The accelerator's `no_sync`."""
        return self.accelerator.no_sync(module)

    def norm(self, found: Tensor) -> Tensor:
        """A sharded gradient's is put together."""
        return self.whole(found)[_WHOLE] if hasattr(found, "full_tensor") else found

    def whole(self, tree: Any) -> Any:
        """Sharded tensors gathered, with the axes they were cut along."""
        if hasattr(tree, "full_tensor"):
            axes = [getattr(placement, "dim", None) for placement in tree.placements]
            return {_WHOLE: tree.full_tensor(), _CUT: axes}
        return _mapped(self.whole, tree)

    def cut(self, tree: Any, model: nn.Module) -> Any:
        """Tensors cut over the model's processes as they were."""
        if isinstance(tree, dict) and tree.keys() == {_WHOLE, _CUT}:
            from torch.distributed.tensor import Replicate, Shard, distribute_tensor

            mesh = next(filter(None, (getattr(p, "device_mesh", None) for p in model.parameters())))
            axes = [Replicate() if axis is None else Shard(axis) for axis in tree[_CUT]]
            return distribute_tensor(tree[_WHOLE].to(mesh.device_type), mesh, axes)
        return _mapped(lambda item: self.cut(item, model), tree)


def together(accelerator: Any) -> Alone:
    """The processes of an accelerator; None is one alone."""
    return Alone() if accelerator is None else Processes(accelerator)


def whole_state(model: nn.Module) -> dict[str, Any]:
    """The model's state dict with no tensor sharded; to be called in every process.

    After a fully sharded training a plain model takes it by `load_state_dict`.
    """
    return {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in model.state_dict().items()
    }


def own_part(value: Tensor) -> Tensor:
    """What this process holds of a tensor: all of it, unless it is sharded."""
    return value.to_local() if hasattr(value, "to_local") else value  # pyright: ignore


def _mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with a function applied to the members of its mappings, lists and tuples."""
    if isinstance(tree, Mapping):
        return {name: function(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(function(value) for value in tree)
    return tree


def _rows(batch: Any, size: int, rows: slice) -> Any:
    """The same structure with these samples of each tensor that holds `size` of them."""
    if isinstance(batch, Tensor):
        return batch[rows] if batch.ndim and len(batch) == size else batch
    return _mapped(lambda item: _rows(item, size, rows), batch)
