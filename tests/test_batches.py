"""Batches: every accepted form reaches the model as it should, every other is refused."""

from collections import OrderedDict, namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import bozzetto as bz
from bozzetto.batches import (
    batch_size,
    batches_of,
    call,
    device_of,
    in_mode,
    output_loss,
    predicted,
    split_batch,
    to,
)

A, B, Y = torch.ones(3, 2), torch.zeros(3, 5), torch.arange(3)
Pair = namedtuple("Pair", ["input", "target"])
PACKED = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])


@pytest.mark.parametrize(
    ("batch", "args", "kwargs", "target"),
    [
        (A, (A,), {}, None),
        ((A,), (A,), {}, None),
        ([A], (A,), {}, None),
        ((A, Y), (A,), {}, Y),
        ([A, Y], (A,), {}, Y),
        (Pair(A, Y), (A,), {}, Y),
        ((A, None), (A,), {}, None),
        (((A, B), Y), (A, B), {}, Y),
        ([[A, B], Y], (A, B), {}, Y),
        (((A, B), None), (A, B), {}, None),
        ({"x": A, "z": B}, (), {"x": A, "z": B}, None),
        ({"x": A, "labels": Y}, (), {"x": A, "labels": Y}, Y),
        (({"x": A}, Y), (), {"x": A}, Y),
        (OrderedDict(x=A), (), {"x": A}, None),
        (PACKED, (PACKED,), {}, None),
        ((PACKED, Y), (PACKED,), {}, Y),
        (((PACKED, B), Y), (PACKED, B), {}, Y),
    ],
)
def test_every_form_of_a_batch_is_understood(batch, args, kwargs, target):
    found = split_batch(batch)
    assert [id(a) for a in found[0]] == [id(a) for a in args]
    assert {k: id(v) for k, v in found[1].items()} == {k: id(v) for k, v in kwargs.items()}
    assert found[2] is target


def test_the_model_gets_the_input_of_a_batch():
    seen = []

    def model(*args, **kwargs):
        seen.append((args, kwargs))
        return "output"

    assert call(model, (({"x": A}), Y)) == "output"
    assert call(model, ((A, B), Y)) == "output"
    assert seen == [((), {"x": A}), ((A, B), {})]


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ("text", "got a str"),
        (None, "got a NoneType"),
        ((A, B, Y), "tuple of 3 items"),
        ((), "tuple of 0 items"),
        (("text", Y), "the input of a batch is a Tensor.*got a str"),
    ],
)
def test_what_is_no_batch_is_refused(batch, says):
    with pytest.raises(TypeError, match=says):
        split_batch(batch)


def test_moving_keeps_the_structure_and_what_is_no_tensor():
    batch = ({"x": A, "names": ["p", "q"], "n": 3}, [Y, None])
    moved = to(batch, torch.device("meta"))
    assert moved[0]["x"].device.type == "meta"
    assert moved[0]["names"] == ("p", "q")
    assert moved[0]["n"] == 3
    assert moved[1][0].device.type == "meta"
    assert moved[1][1] is None


@pytest.mark.parametrize("batch", [A, (A, Y), ((A, B), Y), {"n": 2, "x": {"y": [A]}}])
def test_the_size_of_a_batch_is_its_first_tensors(batch):
    assert batch_size(batch) == 3


@pytest.mark.parametrize("batch", [torch.tensor(1.0), {"n": 2}])
def test_a_batch_without_a_batch_axis_is_refused(batch):
    with pytest.raises(ValueError, match="first axis is the batch"):
        batch_size(batch)


def test_predictions_and_losses_are_found_in_what_models_return():
    loss = torch.tensor(1.0)
    for output in ({"logits": A, "loss": loss}, SimpleNamespace(logits=A, loss=loss)):
        assert predicted(output) is A
        assert output_loss(output) is loss
    assert predicted(A) is A
    assert output_loss(A) is None
    assert output_loss({"logits": A, "loss": None}) is None
    with pytest.raises(TypeError, match="got a tuple"):
        predicted((A, B))


def test_a_mode_ends_with_every_flag_as_it_was():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    model[1][0].eval()
    before = [m.training for m in model.modules()]
    for training in (True, False):
        with in_mode(model, training=training):
            assert all(m.training is training for m in model.modules())
        assert [m.training for m in model.modules()] == before
        with pytest.raises(TypeError), in_mode(model, training=training):
            model(None)
        assert [m.training for m in model.modules()] == before


def test_a_models_device_is_its_first_tensors():
    assert device_of(nn.Linear(2, 2, device="meta")).type == "meta"
    assert device_of(nn.BatchNorm1d(2, affine=False, device="meta")).type == "meta"
    assert device_of(nn.ReLU()).type == "cpu"


def test_packed_sequences_are_moved_whole_and_counted():
    moved = to(((PACKED, B), Y), torch.device("meta"))[0][0]
    assert isinstance(moved, PackedSequence)
    assert moved.data.is_meta
    assert batch_size((PACKED, Y)) == 2


def test_one_tensor_is_not_taken_for_batches_of_its_rows():
    model, x = nn.Linear(4, 4), torch.ones(6, 4)
    assert batches_of([x])
    for wrong in (
        lambda: bz.collect(model, x),
        lambda: bz.compress(model, 0.5, x),
        lambda: bz.evaluate(model, x),
        lambda: bz.train(model, x),
        lambda: bz.train(model, [(x, x)], val=x),
    ):
        with pytest.raises(TypeError, match="batches are needed, as a list"):
            wrong()
