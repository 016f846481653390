"""Exact twins of torch's composite modules, made of linear layers that can be swapped and hooked.

Importing the package registers them with `bozzetto.maps.expand_one`. A twin owns clones of the
parameters that the module itself owns. Modules that were its children are carried over as they are,
so that a tie through them holds; a caller who will train or change the twin copies the model first.
"""

from bozzetto.composite import transformer
from bozzetto.composite.attention import MultiheadAttention
from bozzetto.composite.cells import Cell, GRUCell, LSTMCell, RNNCell
from bozzetto.composite.recurrent import GRU, LSTM, RNN, Recurrent

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Cell",
    "GRUCell",
    "LSTMCell",
    "MultiheadAttention",
    "RNNCell",
    "Recurrent",
    "transformer",
]
