"""Training that makes a network bear crashes: neurons crash while it learns."""

import torch.nn.functional as F
from torch import Tensor, nn

from bozzetto.analysis.crash.faulty import activation_nodes
from bozzetto.analysis.crash.network import trace
from bozzetto.batches import copied


class CrashDropout(nn.Module):
    """While training, every element is 0 with chance p; unlike in dropout, none is rescaled."""

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"a crash probability while training lies in [0, 1); got {p}")
        self.p = p

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"

    def forward(self, x: Tensor) -> Tensor:
        """Crash."""
        return F.dropout(x, self.p, self.training) * (1 - self.p if self.training else 1.0)


def with_crashes(model: nn.Module, p: float) -> nn.Module:
    """A copy of the model whose activations crash with chance p while it is in training mode.

    Its state dict has the model's names, so that trained weights load back into the model.

    Raises:
        ValueError: for p outside [0, 1), or a model without an activation before its output.
        TypeError: for a model that cannot be traced, or is another one while it trains.
    """
    crashes = CrashDropout(p).train(model.training)
    graph = trace(_same_in_both_modes(copied(model)))
    nodes = activation_nodes(graph)
    if not nodes:
        raise ValueError("no layer can crash: the network has no activation before its output")
    name = "crashes"
    while hasattr(graph, name):
        name += "_"
    graph.add_submodule(name, crashes)
    for node in nodes:
        with graph.graph.inserting_after(node):
            crashed = graph.graph.call_module(name, (node,))
        node.replace_all_uses_with(
            crashed, delete_user_cb=lambda user, own=crashed: user is not own
        )
    graph.recompile()
    return graph


def _same_in_both_modes(model: nn.Module) -> nn.Module:
    """The model, if a trace of it holds whether it trains or not."""
    probe = copied(model)
    if trace(probe.train()).code != trace(probe.eval()).code:
        raise TypeError(
            f"{type(model).__name__} asks for its training mode as it runs, as functional dropout "
            "does: use modules such as nn.Dropout"
        )
    return model
