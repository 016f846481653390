"""Transformers models from strangers: architectures and folders that are made to harm."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import guard
from strange_architectures import GPT2

import bozzetto as bz
from bozzetto.data import load_model
from bozzetto.io import InvalidFolder

transformers = pytest.importorskip("transformers")

BERT = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
    "vocab_size": 60, "max_position_embeddings": 32, "num_labels": 3,
}  # fmt: skip


def changed(file: Path, key: str | None, **change: object) -> None:
    """Other values in a file of JSON, or in one of its objects."""
    data = json.loads(file.read_text())
    (data if key is None else data[key]).update(change)
    file.write_text(json.dumps(data))


@pytest.fixture(scope="module")
def made() -> tuple[torch.nn.Module, bz.Plan]:
    return bz.sketch(transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)), 0.6)


@pytest.fixture
def saved(made: tuple[torch.nn.Module, bz.Plan], tmp_path: Path) -> Path:
    bz.load(folder := bz.save(tmp_path / "small", *made))  # imports what it needs
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 1 << 40}, {"n_embd": 1 << 20}, {"n_layer": 1 << 19}, {"n_layer": 10**12},
        {"num_labels": 10**9}, {"n_positions": 1 << 31}, {"task_specific_params": {"n_x": 10**9}},
    ],
)  # fmt: skip
def test_an_architecture_that_would_fill_the_memory_is_refused_before(
    saved: Path, change: dict[str, object]
) -> None:
    changed(saved / "architecture.json", "config", **change)
    with guard(), pytest.raises(InvalidFolder, match=r"all proportion|needs to be at most"):
        bz.load(saved)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A transformers folder, and not one of ours."""
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**BERT))
    model.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["pipeline"]}, "class of transformers"),
        ({"architectures": ["AutoModel"]}, "class of transformers"),
        ({"architectures": ["PreTrainedModel"]}, "class of transformers"),
        ({"architectures": []}, "needs to name one architecture"),
        ({"architectures": None}, "needs to name one architecture"),
        ({"hidden_size": 64}, "cannot be read as a BertForSequenceClassification"),
        ({"num_hidden_layers": 2}, "lacks weights of a BertForSequenceClassification"),
        ({"vocab_size": 1 << 34}, "needs to be at most"),
        ({"vocab_size": 1 << 31}, "all proportion"),
    ],
)
def test_a_transformers_folder_that_makes_no_sense_is_refused(
    folder: Path, change: dict[str, object], message: str
) -> None:
    changed(folder / "config.json", None, **change)
    with pytest.raises(ValueError, match=message):
        load_model(str(folder))


def test_a_transformers_folder_runs_no_code_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was fetched or asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("builtins.input", refuse)
    (folder / "code.py").write_text("raise SystemExit")
    strange = {"attn_implementation": "a/kernel", "_attn_implementation_internal": "a/kernel"}
    changed(folder / "config.json", None, auto_map={"AutoModel": "code.Model"}, **strange)
    found: Any = load_model(str(folder)).network
    assert type(found) is transformers.BertForSequenceClassification
    assert found.config._attn_implementation == "sdpa"
