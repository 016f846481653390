"""Recurrent networks of linear layers, against torch's own."""

import re
from typing import Any

import pytest
import torch
from recurrent_cases import (
    CONFIGS,
    INPUTS,
    KINDS,
    B,
    H,
    N,
    T,
    flat,
    gradients,
    make,
    numbers,
    states,
    torch_name,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.testing import assert_close

from bozzetto.composite import GRU, LSTM, RNN, RNNCell
from bozzetto.maps import expand_one

TWINS = {nn.LSTM: LSTM, nn.GRU: GRU, nn.RNN: RNN}
every_config = pytest.mark.parametrize("config", CONFIGS)
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@pytest.mark.parametrize("started", [False, True], ids=["from zero", "from a state"])
@pytest.mark.parametrize("form", INPUTS)
@every_config
def test_it_is_torchs_network(config: str, form: str, started: bool, fill, twin_of):
    kind, options = CONFIGS[config]
    source = make(fill, kind, **options)
    twin = twin_of(source)
    assert type(twin) is TWINS[kind]
    build, batch = INPUTS[form]
    x, leaves = build(source)
    call = (x,)
    if started:
        call = (x, states(source, *batch))
        leaves = leaves + flat(call[1])
    expected, got = source(*call), twin(*call)
    assert type(got[0]) is type(expected[0])
    assert type(got[1]) is type(expected[1])
    assert_close(flat(got), flat(expected))
    assert_close(gradients(twin, got, leaves), gradients(source, expected, leaves))
    if isinstance(got[0], PackedSequence):
        assert_close(list(got[0][1:]), list(expected[0][1:]))


@every_kind
def test_evaluation_without_gradients_agrees_too(kind, fill, twin_of):
    """There torch may run another kernel; and in single precision."""
    source = make(fill, kind, num_layers=2, bidirectional=True, dtype=torch.float32).eval()
    x = numbers(T, B, N).float()
    with torch.no_grad():
        assert_close(flat(twin_of(source)(x)), flat(source(x)))


@pytest.mark.parametrize("form", ["whole", "unsorted"])
@every_kind
def test_dropout_lies_between_layers_with_torchs_random_numbers(kind, form: str, fill, twin_of):
    source = make(fill, kind, num_layers=3, dropout=0.4, bidirectional=True).train()
    twin = twin_of(source)
    x, _ = INPUTS[form][0](source)
    results = []
    for module in (source, twin):
        with torch.random.fork_rng():
            torch.random.default_generator.manual_seed(5)
            results.append(flat(module(x)))
    assert_close(results[1], results[0])
    assert_close(flat(twin.eval()(x)), flat(source.eval()(x)))
    assert (flat(twin(x))[0] - results[0][0]).abs().amax() > 0.01


@every_kind
def test_each_map_is_called_and_can_be_swapped(kind, fill, twin_of):
    """Input maps once on all steps, the state's maps once a step, in evaluation."""
    twin = twin_of(make(fill, kind, num_layers=2, bidirectional=True).eval())
    x = numbers(T, B, N)
    called: list[str] = []
    rows: set[int] = set()
    linears = {name: part for name, part in twin.named_modules() if isinstance(part, nn.Linear)}
    assert len(linears) == 8
    for name, part in linears.items():

        def note(_: nn.Module, args: tuple[Tensor], __: Tensor, name: str = name) -> None:
            called.append(name)
            rows.add(args[0].shape[0])

        part.register_forward_hook(note)
    with torch.no_grad():
        before = twin(x)[0]
    assert {name: called.count(name) for name in linears} == {
        name: 1 if name.endswith("ih") else T for name in linears
    }
    assert rows == {T * B, B}
    for name, part in linears.items():
        parent, _, child = name.rpartition(".")
        pair = nn.Sequential(nn.Linear(part.in_features, 2), nn.Linear(2, part.out_features))
        setattr(twin.get_submodule(parent), child, fill(pair.double()))
        assert (twin(x)[0] - before).abs().amax() > 1e-3
        setattr(twin.get_submodule(parent), child, part)


def test_the_projection_can_be_swapped_too(fill, twin_of):
    twin = twin_of(make(fill, nn.LSTM, proj_size=2))
    x = numbers(T, B, N)
    before = twin(x)[0]
    twin.get_submodule("layers.0.forward_").hr = fill(nn.Linear(H, 2, bias=False).double(), seed=3)
    assert (twin(x)[0] - before).abs().amax() > 1e-3


def test_names_and_attributes_are_what_models_ask_for(fill, twin_of):
    source = make(fill, nn.LSTM, num_layers=2, bidirectional=True, proj_size=2, batch_first=True)
    twin = twin_of(source)
    names = (
        *("input_size", "hidden_size", "num_layers", "bidirectional", "proj_size"),
        *("batch_first", "dropout", "bias"),
    )
    assert [getattr(twin, n) for n in names] == [getattr(source, n) for n in names]
    twin.flatten_parameters()
    given = {torch_name(name): p for name, p in twin.named_parameters()}
    assert given.keys() == dict(source.named_parameters()).keys()
    assert_close(given, dict(source.named_parameters()))
    assert twin.extra_repr() == "batch_first=True"


@every_kind
def test_what_it_is_made_of_is_kept(kind, fill, twin_of):
    source = make(fill, kind, num_layers=2, dtype=torch.bfloat16).eval()
    source.weight_hh_l1.requires_grad_(False)
    source.register_forward_hook(lambda _, __, out: (out[0] + 1, out[1]))
    twin = twin_of(source)
    frozen = {name for name, p in twin.named_parameters() if not p.requires_grad}
    assert frozen == {"layers.1.forward_.hh.weight"}
    assert {p.dtype for p in twin.parameters()} == {torch.bfloat16}
    assert not any(part.training for part in twin.modules())
    x = numbers(T, B, N).bfloat16()
    assert twin(x)[0].dtype == torch.bfloat16
    assert twin(x)[0].mean() > 0.5  # the hook added one
    assert {p.device.type for p in expand_one(kind(N, H, device="meta")).parameters()} == {"meta"}


@every_kind
def test_it_is_its_own_twin_and_its_state_loads_back(kind, fill, twin_of):
    source = make(fill, kind, num_layers=2, bidirectional=True)
    twin, other = twin_of(source), twin_of(make(fill, kind, num_layers=2, bidirectional=True))
    assert twin_of(twin) is twin
    assert all(expand_one(part) is part for part in twin.modules())
    fill(other, seed=7).load_state_dict(twin.state_dict())
    x = numbers(T, B, N)
    assert_close(flat(other(x)), flat(source(x)))


@every_kind
def test_its_parameters_are_clones(kind, fill, twin_of):
    """The fixture sees that the original keeps its values."""
    for source in (make(fill, kind, bidirectional=True), kind(N, H, bias=False)):
        with torch.no_grad():
            for parameter in twin_of(source).parameters():
                parameter.zero_()


@every_kind
def test_what_is_not_exactly_torchs_stays_as_it_is(kind, fill, twin_of):
    class Own(kind):
        def forward(self, input: Tensor) -> Tensor:
            return input * 2

    pruned = make(fill, kind)
    prune.l1_unstructured(pruned, "weight_hh_l0", 0.5)
    normed = parametrizations.weight_norm(make(fill, kind), "weight_ih_l0")
    for module in (Own(N, H), pruned, normed):
        assert twin_of(module) is module


@every_kind
def test_it_exports_compiles_and_runs_under_autocast(kind, fill, twin_of):
    twin = twin_of(make(fill, kind, bidirectional=True, dtype=torch.float32)).eval()
    x = numbers(T, 1, N).detach().float()
    expected = flat(twin(x))
    exported = torch.export.export(twin, (x,)).module()
    assert_close(flat(exported(x)), expected)
    compiled = torch.compile(twin, fullgraph=True, backend="eager")
    assert_close(flat(compiled(x)), expected)
    packed = pack_padded_sequence(x.expand(T, B, N), torch.tensor([T, 2, 1]))
    for form in (x, packed):
        with torch.autocast("cpu", torch.bfloat16):
            got = flat(twin(form))
        sum(y.float().sum() for y in got).backward()
        if form is x:
            assert_close([y.float() for y in got], expected, rtol=0.05, atol=0.05)
    assert all(p.grad is not None for p in twin.parameters())


def test_export_keeps_the_batch_free(fill, twin_of):
    twin = twin_of(make(fill, nn.LSTM, batch_first=True, dtype=torch.float32)).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    x = numbers(B, T, N).detach().float()
    exported = torch.export.export(twin, (x,), dynamic_shapes=({0: batch},)).module()
    more = numbers(B + 4, T, N, seed=8).detach().float()
    assert_close(flat(exported(more)), flat(twin(more)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ((numbers(T, B, N + 1),), "one step of 4 numbers; got 5 steps of 5"),
        ((numbers(0, B, N),), "one step of 4 numbers; got 0 steps of 4"),
        ((numbers(T),), "3 axes, or 2 without a batch; got 1"),
        (
            (numbers(T, B, N), numbers(1, B, H)),
            "state needs [(1, 3, 6), (1, 3, 6)]; got [(1, 3, 6)]",
        ),
        ((numbers(T, B, N), (numbers(1, 2, H),) * 2), "got [(1, 2, 6), (1, 2, 6)]"),
    ],
)
def test_wrong_inputs_are_refused(call: tuple[Any, ...], message: str, fill, twin_of):
    twin = twin_of(make(fill, nn.LSTM))
    with pytest.raises(ValueError, match=re.escape(message)):
        twin(*call)


def test_wrong_parts_are_refused():
    def cell() -> RNNCell:
        return RNNCell(nn.Linear(N, H), nn.Linear(H, H))

    with pytest.raises(ValueError, match=re.escape("one cell or each two; got [1, 2]")):
        RNN([[cell()], [cell(), cell()]])
    with pytest.raises(ValueError, match=re.escape("got []")):
        RNN([])
