"""Recurrent cells of two linear layers, against torch's own."""

import pytest
import torch
from recurrent_cases import B, H, N, flat, gradients, numbers
from torch import nn
from torch.nn.utils import prune
from torch.testing import assert_close

from bozzetto.composite import GRUCell, LSTMCell, RNNCell

CELLS = {
    "lstm": (nn.LSTMCell, LSTMCell, {}),
    "gru": (nn.GRUCell, GRUCell, {}),
    "rnn": (nn.RNNCell, RNNCell, {}),
    "relu": (nn.RNNCell, RNNCell, {"nonlinearity": "relu"}),
    "no bias": (nn.LSTMCell, LSTMCell, {"bias": False}),
    "gru, no bias": (nn.GRUCell, GRUCell, {"bias": False}),
}


@pytest.mark.parametrize("started", [False, True], ids=["from zero", "from a state"])
@pytest.mark.parametrize("batch", [(B,), ()], ids=["batch", "no batch"])
@pytest.mark.parametrize("cell", CELLS)
def test_it_is_torchs_cell(cell: str, batch: tuple[int, ...], started: bool, fill, twin_of):
    kind, twin_kind, options = CELLS[cell]
    source = fill(kind(N, H, dtype=torch.float64, **options))
    twin = twin_of(source)
    assert type(twin) is twin_kind
    assert (twin.input_size, twin.hidden_size, twin.bias) == (N, H, options.get("bias", True))
    x, h, c = numbers(*batch, N), numbers(*batch, H, seed=2), numbers(*batch, H, seed=3)
    call = (x, (h, c) if kind is nn.LSTMCell else h) if started else (x,)
    leaves = flat(call)
    expected, got = source(*call), twin(*call)
    assert type(got) is type(expected)
    assert_close(flat(got), flat(expected))
    assert_close(gradients(twin, got, leaves), gradients(source, expected, leaves))


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_a_cell_that_is_not_exactly_torchs_stays_as_it_is(kind, fill, twin_of):
    own = type("Own", (kind,), {})(N, H)
    pruned = fill(kind(N, H))
    prune.l1_unstructured(pruned, "weight_hh", 0.5)
    for module in (own, pruned):
        assert twin_of(module) is module
    twin = twin_of(kind(N, H))
    assert twin_of(twin) is twin


def test_a_wrong_nonlinearity_is_refused():
    with pytest.raises(ValueError, match="'tanh' or 'relu'; got 'gelu'"):
        RNNCell(nn.Linear(N, H), nn.Linear(H, H), "gelu")
