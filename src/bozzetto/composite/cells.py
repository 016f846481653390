"""Recurrent cells as two linear layers and their gates."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from bozzetto.composite.twins import clone, inherit, is_exactly, linear
from bozzetto.maps import expand_one

State = tuple[Tensor, ...]
Hidden = Tensor | tuple[Tensor, ...]


def as_state(hidden: Hidden | None) -> State | None:
    """A state as a tuple, however torch's convention writes it."""
    return (hidden,) if isinstance(hidden, Tensor) else hidden


def as_hidden(state: State) -> Hidden:
    """A state as torch returns it: the tuple of an LSTM, the tensor of all others."""
    first, *others = state
    return state if others else first


class Cell(nn.Module, ABC):
    """One step: the input map `ih`, the state's map `hh`, and what the gates make of them.

    Called as torch's cells are: `cell(x, hidden)`, x (b, n) or (n,), hidden a tensor (b, width) or
    for the LSTM a pair, zeros if not given; returns the next hidden. The children are called,
    never read: each may be replaced by any module of the same widths.

    Args:
        ih: input to gates, n -> gates·hidden_size.
        hh: state to gates, width -> gates·hidden_size.
    """

    gates: ClassVar[int]

    def __init__(self, ih: nn.Linear, hh: nn.Linear) -> None:
        super().__init__()
        self.ih, self.hh = ih, hh
        self.input_size, self.hidden_size = ih.in_features, ih.out_features // self.gates
        self.bias = ih.bias is not None

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of the state's tensors."""
        return (self.hidden_size,)

    @abstractmethod
    def step(self, x: Tensor, state: State) -> State:
        """The next state, from the mapped input ih(x) (b, gates·hidden_size); its first is out."""

    def forward(self, input: Tensor, hx: Hidden | None = None) -> Hidden:
        """(b, n) or (n,) and the hidden state -> the next hidden state."""
        state = as_state(hx) or tuple(input.new_zeros(*input.shape[:-1], w) for w in self.widths)
        return as_hidden(self.step(self.ih(input), state))


class LSTMCell(Cell):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997), gates in torch's order i f g o.

    Args:
        ih: as for every cell.
        hh: as for every cell.
        hr: projects the output to fewer numbers (Sak et al., 2014); None does not.
    """

    gates = 4

    def __init__(self, ih: nn.Linear, hh: nn.Linear, hr: nn.Linear | None = None) -> None:
        super().__init__(ih, hh)
        self.hr = hr
        self.proj_size = 0 if hr is None else hr.out_features

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the output and of the memory."""
        return (self.proj_size or self.hidden_size, self.hidden_size)

    def step(self, x: Tensor, state: State) -> State:
        """The next output and memory."""
        h, c = state
        i, f, g, o = (x + self.hh(h)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (h if self.hr is None else self.hr(h)), c


class GRUCell(Cell):
    """Gated recurrent unit (Cho et al., 2014), gates in torch's order r z n."""

    gates = 3

    def step(self, x: Tensor, state: State) -> State:
        """The next output; the reset gate acts on the mapped state, as in torch."""
        (h,) = state
        x_reset, x_update, x_new = x.chunk(3, -1)
        h_reset, h_update, h_new = self.hh(h).chunk(3, -1)
        new = (x_new + (x_reset + h_reset).sigmoid() * h_new).tanh()
        return (new + (x_update + h_update).sigmoid() * (h - new),)


class RNNCell(Cell):
    """The simple recurrent network (Elman, 1990).

    Args:
        ih: as for every cell.
        hh: as for every cell.
        nonlinearity: "tanh" or "relu".

    Raises:
        ValueError: for another nonlinearity.
    """

    gates = 1

    def __init__(self, ih: nn.Linear, hh: nn.Linear, nonlinearity: str = "tanh") -> None:
        super().__init__(ih, hh)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity is 'tanh' or 'relu'; got {nonlinearity!r}")
        self.nonlinearity = nonlinearity

    def step(self, x: Tensor, state: State) -> State:
        """The next output."""
        total = x + self.hh(state[0])
        return (total.tanh() if self.nonlinearity == "tanh" else F.relu(total),)


_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _maps(module: nn.RNNCellBase) -> tuple[nn.Linear, nn.Linear]:
    """Clones of a torch cell's two maps."""
    weights = clone(module.weight_ih), clone(module.weight_hh)
    biases = (clone(module.bias_ih), clone(module.bias_hh)) if module.bias else (None, None)
    return linear(weights[0], biases[0]), linear(weights[1], biases[1])


@expand_one.register
def _(module: nn.LSTMCell) -> nn.Module:
    if not is_exactly(module, nn.LSTMCell, _PARAMETERS):
        return module
    return inherit(LSTMCell(*_maps(module)), module)


@expand_one.register
def _(module: nn.GRUCell) -> nn.Module:
    if not is_exactly(module, nn.GRUCell, _PARAMETERS):
        return module
    return inherit(GRUCell(*_maps(module)), module)


@expand_one.register
def _(module: nn.RNNCell) -> nn.Module:
    if not is_exactly(module, nn.RNNCell, _PARAMETERS):
        return module
    return inherit(RNNCell(*_maps(module), module.nonlinearity), module)
