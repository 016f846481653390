"""Batch norm's running statistics, estimated afresh at the parameters to evaluate."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def estimate_batch_norm(model: nn.Module, batches: Iterable[Tensor | Sequence[Tensor]]) -> None:
    """Set the running statistics of every batch norm to those of `batches` at these parameters.

    Running statistics lag behind the parameters, the more so when these jump, as they do at a mix:
    estimate them afresh before an evaluation (Izmailov et al. 2018; Wu and Johnson 2021). Each
    batch counts by its size; every other layer (dropout) is in evaluation mode meanwhile. Training
    flags and momenta are restored. A model without batch norm is left alone.

    Args:
        model: its buffers are written.
        batches: inputs, or sequences whose first item is the input, (b, …), on the model's device.

    Raises:
        ValueError: if there are no batches.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not layers:
        return
    with _only_training(model, layers), torch.no_grad():
        seen = 0
        for batch in batches:
            x = batch if isinstance(batch, Tensor) else batch[0]
            seen += len(x)
            for layer in layers:
                if seen == len(x):
                    layer.reset_running_stats()  # 0 · nan would be nan
                layer.momentum = len(x) / seen
            model(x)
    if not seen:
        raise ValueError("batch norm's statistics need at least one batch; got none")


@contextmanager
def _only_training(model: nn.Module, layers: Sequence[_BatchNorm]) -> Iterator[None]:
    """Evaluation mode but for these layers; flags and momenta are put back."""
    modes = [(m, m.training) for m in model.modules()]
    momenta = [(layer, layer.momentum) for layer in layers]
    try:
        model.eval()
        for layer in layers:
            layer.training = True
        yield
    finally:
        for module, training in modes:
            module.training = training
        for layer, momentum in momenta:
            layer.momentum = momentum
