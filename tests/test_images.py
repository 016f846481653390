"""Datasets in the layout of the Hugging Face hub, read through its own library."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torch.testing import assert_close

datasets = pytest.importorskip("datasets")

from bozzetto.data import load_batches  # noqa: E402
from bozzetto.images import hub_batches, image_batches  # noqa: E402


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(cache))
    datasets.disable_progress_bars()


def picture(shade: int) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (4, 3), (shade, 0, 255 - shade)).save(made, "PNG")
    return made.getvalue()


def write(folder: Path, split: str, count: int, *, label: pa.DataType | None = None) -> None:
    folder.mkdir(exist_ok=True)
    pictures = [{"bytes": picture(20 * i), "path": None} for i in range(count)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = [i % 3 for i in range(count)] if label is None else ["a"] * count
    columns = {"img": pa.array(pictures, kind), "label": pa.array(labels, label or pa.int64())}
    typed = {"dtype": "int64" if label is None else "string", "_type": "Value"}
    about = {"info": {"features": {"img": {"_type": "Image"}, "label": typed}}}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(about)})
    parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "set", "train", 10)
    write(tmp_path / "set", "test", 4)
    return tmp_path / "set"


def test_the_hubs_library_and_our_own_reader_give_the_same_images(folder: Path) -> None:
    hub = hub_batches(str(folder), size=4, seed=3)
    own = image_batches(folder / "train-00000-of-00001.parquet", size=4, seed=3)
    assert len(hub) == len(own) == 3
    for (x, y), (same, label) in zip(hub, own, strict=True):
        assert_close(x, same, rtol=0, atol=0)
        assert_close(y, label, rtol=0, atol=0)
        assert x.shape[1:] == (3, 3, 4)


def test_a_split_is_named_after_the_dataset(folder: Path) -> None:
    labels = [y for _, y in load_batches(f"hub:{folder}:test[:3]", size=2)]
    assert sorted(torch.cat(labels).tolist()) == [0, 1, 2]
    assert sum(len(y) for _, y in load_batches(f"hub:{folder}")) == 10


def test_a_dataset_that_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the dataset .*nowhere', split 'train': "):
        load_batches(f"hub:{tmp_path / 'nowhere'}")
    with pytest.raises(ValueError, match=r"split 'dev': .*dev"):
        load_batches(f"hub:{folder}:dev")


def test_a_dataset_of_another_kind_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "named", "train", 3, label=pa.string())
    with pytest.raises(ValueError, match=r"labels need to be whole numbers; .*named has"):
        load_batches(f"hub:{tmp_path / 'named'}")
    (tmp_path / "text").mkdir()
    parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "text" / "train.parquet")
    with pytest.raises(
        ValueError, match=r"columns image \(or img\) and label; .*text has \['text'\]"
    ):
        load_batches(f"hub:{tmp_path / 'text'}")
