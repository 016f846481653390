"""Recurrent networks whose every map is a linear layer: layers, directions, packed sequences."""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from bozzetto.composite.cells import (
    Cell,
    GRUCell,
    Hidden,
    LSTMCell,
    RNNCell,
    State,
    as_hidden,
    as_state,
)
from bozzetto.composite.twins import clone, inherit, is_exactly, linear
from bozzetto.maps import expand_one

DIRECTIONS = ("forward_", "reverse")  # plain "forward" is taken by every module


class Recurrent(nn.Module):
    """Cells over time, in one or two directions, layer upon layer.

    Called as torch's `nn.LSTM`, `nn.GRU` and `nn.RNN` are, and returns what they return. The
    children are `layers.0.forward_.ih`, `layers.0.reverse.hh` and so on. A layer's input map is
    called once, on all steps (Σ lengths, n); the state's map once a step.

    Args:
        layers: for each layer its cells: one, or one forward and one reverse.
        batch_first: batched inputs are (b, t, n), not (t, b, n).
        dropout: probability to drop a value between layers in training.

    Raises:
        ValueError: without layers, or if they differ in the number of directions.
    """

    def __init__(
        self, layers: Sequence[Sequence[Cell]], *, batch_first: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        counts = {len(cells) for cells in layers}
        if counts not in ({1}, {2}):
            raise ValueError(f"each layer needs one cell or each two; got {sorted(counts)}")
        self.layers = nn.ModuleList(
            nn.ModuleDict(dict(zip(DIRECTIONS, cells, strict=False))) for cells in layers
        )
        first = layers[0][0]
        self.widths, self.bias = first.widths, first.bias
        self.input_size, self.hidden_size = first.input_size, first.hidden_size
        self.num_layers, self.bidirectional = len(layers), len(layers[0]) == 2
        self.batch_first, self.dropout = batch_first, dropout

    @property
    def proj_size(self) -> int:
        """The width of an LSTM's projected output; 0 without a projection."""
        return self.widths[0] % self.hidden_size

    def extra_repr(self) -> str:
        """What the children do not show."""
        parts = ["batch_first=True"] * self.batch_first
        parts += [f"dropout={self.dropout}"] * (self.dropout > 0)
        return ", ".join(parts)

    def flatten_parameters(self) -> None:
        """Do nothing: torch's layers arrange weights for cuDNN here, and models call it."""

    def forward(
        self, input: Tensor | PackedSequence, hx: Hidden | None = None
    ) -> tuple[Tensor | PackedSequence, Hidden]:
        """Run over sequences.

        Args:
            input: (b, t, n) if batch_first, else (t, b, n); (t, n) without a batch; or packed.
            hx: initial state (layers·directions, b, width), without b if the input is without; for
                the LSTM a pair; zeros if not given.

        Returns:
            The last layer's outputs at all steps, in the form of the input, and the final state in
            the form of hx.

        Raises:
            ValueError: for an input or a state of a wrong shape.
        """
        state = as_state(hx)
        if isinstance(input, PackedSequence):
            return self._run_packed(input, state)
        if input.ndim not in (2, 3):
            raise ValueError(f"input needs 3 axes, or 2 without a batch; got {input.ndim}")
        batched = input.ndim == 3
        if not batched:
            x, state = input.unsqueeze(1), state and tuple(s.unsqueeze(1) for s in state)
        else:
            x = input.transpose(0, 1) if self.batch_first else input
        t, b = x.shape[:2]
        y, final = self._run(x.flatten(0, 1), [b] * t, state)
        y = y.unflatten(0, (t, b))
        if not batched:
            return y.squeeze(1), as_hidden(tuple(s.squeeze(1) for s in final))
        return y.transpose(0, 1) if self.batch_first else y, as_hidden(final)

    def _run_packed(
        self, packed: PackedSequence, state: State | None
    ) -> tuple[PackedSequence, Hidden]:
        """Packed sequences: sorted by length, the state in the order before sorting."""
        data, sizes, order, back = packed
        state = state and _reorder(state, order)
        y, final = self._run(data, sizes.tolist(), state)
        return PackedSequence(y, sizes, order, back), as_hidden(_reorder(final, back))

    def _run(self, x: Tensor, sizes: list[int], state: State | None) -> tuple[Tensor, State]:
        """All layers over steps (Σ sizes, n), the size of each step first to last, not growing."""
        if not sizes or x.shape[-1] != self.input_size:
            raise ValueError(
                f"input needs at least one step of {self.input_size} numbers; "
                f"got {len(sizes)} steps of {x.shape[-1]}"
            )
        state = self._initial(x, sizes[0], state)
        rows = zip(*(s.unbind(0) for s in state), strict=True)  # of each layer and direction
        finals: list[State] = []
        for depth, layer in enumerate(cast(Iterable[nn.ModuleDict], self.layers)):
            if depth and self.dropout:
                x = F.dropout(x, self.dropout, self.training)
            outputs: list[Tensor] = []
            for name, cell in layer.items():
                y, final = _scan(cast(Cell, cell), x, sizes, next(rows), name == "reverse")
                outputs.append(y)
                finals.append(final)
            x = torch.cat(outputs, -1)
        return x, tuple(torch.stack(part) for part in zip(*finals, strict=True))

    def _initial(self, x: Tensor, b: int, state: State | None) -> State:
        """The given state, its shape checked, or zeros."""
        count = self.num_layers * (1 + self.bidirectional)
        shapes = [(count, b, width) for width in self.widths]
        if state is None:
            return tuple(x.new_zeros(shape) for shape in shapes)
        if [s.shape for s in state] != shapes:
            raise ValueError(f"state needs {shapes}; got {[tuple(s.shape) for s in state]}")
        return state


def _reorder(state: State, order: Tensor | None) -> State:
    """The sequences of the batch in another order."""
    return state if order is None else tuple(s.index_select(1, order) for s in state)


def _scan(
    cell: Cell, x: Tensor, sizes: list[int], state: State, reverse: bool
) -> tuple[Tensor, State]:
    """One cell over steps (Σ sizes, n) -> its outputs and final state.

    At a step only the first sequences of the batch are there: the others have ended (and keep
    their final state), or in reverse not begun (and keep their initial one).
    """
    outputs: list[Tensor] = []
    steps = cell.ih(x).split(sizes)
    for gates in reversed(steps) if reverse else steps:
        here = gates.shape[0]
        everyone = here == state[0].shape[0]
        new = cell.step(gates, state if everyone else tuple(s[:here] for s in state))
        outputs.append(new[0])
        state = (
            new
            if everyone
            else tuple(torch.cat([n, s[here:]]) for n, s in zip(new, state, strict=True))
        )
    return torch.cat(outputs[::-1] if reverse else outputs), state


class LSTM(Recurrent):
    """Layers of `LSTMCell`."""


class GRU(Recurrent):
    """Layers of `GRUCell`."""


class RNN(Recurrent):
    """Layers of `RNNCell`."""


def _cell(module: nn.RNNBase, names: Sequence[str]) -> Cell:
    """The cell of one layer and direction: its weights in torch's order ih, hh (and hr, last)."""
    weights = [clone(getattr(module, name)) for name in names]
    biases = weights[2:4] if module.bias else [None, None]
    ih, hh = linear(weights[0], biases[0]), linear(weights[1], biases[1])
    if isinstance(module, nn.LSTM):
        return LSTMCell(ih, hh, linear(weights[-1], None) if module.proj_size else None)
    if isinstance(module, nn.GRU):
        return GRUCell(ih, hh)
    return RNNCell(ih, hh, cast(nn.RNN, module).nonlinearity)


def _expand(module: nn.RNNBase, kind: type[nn.RNNBase], twin: type[Recurrent]) -> nn.Module:
    if not is_exactly(module, kind, module._flat_weights_names):
        return module
    cells = [_cell(module, names) for names in module._all_weights]
    width = 1 + module.bidirectional
    layers = [cells[i : i + width] for i in range(0, len(cells), width)]
    made = twin(layers, batch_first=module.batch_first, dropout=module.dropout)
    return inherit(made, module)


@expand_one.register
def _(module: nn.LSTM) -> nn.Module:
    return _expand(module, nn.LSTM, LSTM)


@expand_one.register
def _(module: nn.GRU) -> nn.Module:
    return _expand(module, nn.GRU, GRU)


@expand_one.register
def _(module: nn.RNN) -> nn.Module:
    return _expand(module, nn.RNN, RNN)


__all__ = ["GRU", "LSTM", "RNN", "Recurrent"]
