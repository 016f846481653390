"""Labelled images of parquet files, folders of pictures or the Hugging Face hub, as batches."""

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bozzetto.parquet import read_columns

__all__ = ["hub_batches", "image_batches"]

_FORMATS = ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"]  # no other decoder is let near
_MOST_PIXELS = 1 << 24  # of a picture: a small file can claim any size
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm"}
_PICTURES = ("image", "img")
_GREY, _DEEP = {"1", "L", "LA"}, {"I", "F", "I;16"}
_WANTED = (
    "DATA needs to be package.module:callable, a parquet file, or a folder that holds parquet "
    "files of one split or a folder of images for every class"
)


def image_batches(path: Path, *, size: int = 64, seed: int = 0) -> DataLoader[Any]:
    """Batches (images, labels): (b, c, h, w) float32 in [0, 1], c 1 or 3; (b,) int64.

    Parquet files have a column "image" or "img" with the bytes of pictures, bare or as the
    Hugging Face datasets store them, and "label" with whole numbers. Folders of pictures are the
    classes, numbered in the order of their names. Pictures are of one size; all are grey if the
    first is. The order is drawn anew for every pass.

    Args:
        path: a parquet file or a folder.
        size: images in a batch.
        seed: of the order.

    Raises:
        ValueError: for anything else, or if the extra `data` is not installed.
    """
    return _batches(_images(path), str(path), size, seed)


def hub_batches(
    name: str, *, split: str = "train", size: int = 64, seed: int = 0
) -> DataLoader[Any]:
    """The same of a dataset of the Hugging Face hub, or of a local folder in its layout.

    It has a column "image" or "img" of pictures, and "label".

    Args:
        name: as for `datasets.load_dataset`: "uoft-cs/cifar10", or a folder.
        split: "train", or an expression such as "train[:1000]".
        size: images in a batch.
        seed: of the order.

    Raises:
        ValueError: if there is no such dataset or split, it has no such columns, or the extra
            `data` is not installed.
    """
    _check_installed("PIL", "datasets")
    return _batches(_HubImages(name, split), f"the split {split!r} of {name}", size, seed)


def _batches(images: "_Images", named: str, size: int, seed: int) -> DataLoader[Any]:
    if size < 1:
        raise ValueError(f"a batch needs at least 1 image; got {size}")
    if not len(images):
        raise ValueError(f"{named} holds no images")
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(images, batch_size=size, shuffle=True, generator=generator)


def _check_installed(*names: str) -> None:
    if not all(find_spec(name) for name in names):
        raise ValueError("DATA from files or the hub needs: pip install 'bozzetto[data]'")


def _column(names: Iterable[str], where: object) -> str:
    """The column of pictures, where there is one and one of labels."""
    column = next((name for name in _PICTURES if name in names), None)
    if column is None or "label" not in names:
        raise ValueError(
            f"parquet needs the columns image (or img) and label; {where} has {[*names]}"
        )
    return column


def _images(path: Path) -> "_Images":
    _check_installed("PIL", "pyarrow")
    if path.is_file() and path.suffix == ".parquet":
        return _ParquetImages([path])
    if not path.is_dir():
        raise ValueError(f"{_WANTED}; got {str(path)!r}, and there is no such file or folder")
    files = sorted(path.rglob("*.parquet"))
    return _ParquetImages(_one_split(path, files)) if files else _FolderImages(path)


def _one_split(path: Path, files: list[Path]) -> list[Path]:
    """The files, refused if their names tell of several splits."""
    names = (re.fullmatch(r"(.+)-\d+-of-\d+", file.stem) for file in files)
    splits = {found[1] for found in names if found}
    if len(splits) > 1:
        raise ValueError(f"{_WANTED}; {path} holds the splits {sorted(splits)}: name a file")
    return files


class _Images(Dataset[tuple[Tensor, int]], ABC):
    """Decoded when asked for."""

    shape: tuple[int, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def opened(self, index: int) -> tuple[str, Any, int]:
        """A name for messages, a file object or path, and the label."""

    @cached_property
    def mode(self) -> str:
        """Of the first picture: the order in which they are read must not decide."""
        name, file, _ = self.opened(0)
        with _picture(name, file) as picture:
            return "L" if picture.mode in _GREY else "RGB"

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        mode, (name, file, label) = self.mode, self.opened(index)
        with _picture(name, file) as picture:
            converted = picture.convert(mode)
        return self._tensor(name, converted), label

    def _tensor(self, name: str, picture: Any) -> Tensor:
        values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        x = values.view(picture.height, picture.width, -1).permute(2, 0, 1) / 255
        self.shape = self.shape or tuple(x.shape)
        if x.shape != self.shape:
            height, width = self.shape[1:]
            raise ValueError(
                f"images need to be of one size; {name} is {picture.height}×{picture.width}, "
                f"another is {height}×{width}"
            )
        return x


@contextmanager
def _picture(name: str, file: Any) -> Iterator[Any]:
    """A picture to be decoded in there; whatever fails names it."""
    import PIL.Image
    import PIL.TiffImagePlugin  # what `open` would look for among all decoders
    import PIL.WebPImagePlugin

    try:
        with PIL.Image.open(file, formats=_FORMATS) as picture:
            if picture.width * picture.height > _MOST_PIXELS:
                raise ValueError(f"it has more than {_MOST_PIXELS} pixels: {picture.size}")
            if picture.mode in _DEEP:
                raise ValueError(f"it has more than 8 bits a channel (mode {picture.mode})")
            yield picture
    except Exception as error:  # a decoder may raise anything
        raise ValueError(f"{name} cannot be read as an image: {error}") from error


class _ParquetImages(_Images):
    """Rows with bytes of pictures and labels."""

    def __init__(self, files: list[Path]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self.files = files
        try:
            names = parquet.read_schema(files[0]).names
            column = _column(names, files[0])
            tables = [read_columns(file, [column, "label"]) for file in files]
            table = pa.concat_tables(tables)
        except (OSError, UnicodeError, pa.ArrowException) as error:
            raise ValueError(f"{files[0].parent} has damaged parquet files: {error}") from error
        if not pa.types.is_integer(table.schema.field("label").type):
            raise ValueError(
                f"labels need to be whole numbers; {files[0]} has "
                f"{table.schema.field('label').type}"
            )
        self.pictures, self.labels = table.column(column), table.column("label").to_pylist()

    def __len__(self) -> int:
        return len(self.labels)

    def opened(self, index: int) -> tuple[str, Any, int]:
        name, found = f"row {index} of {self.files[0].parent}", self.pictures[index].as_py()
        content = found.get("bytes") if isinstance(found, dict) else found
        if not isinstance(content, bytes):
            raise ValueError(f"{name} needs the bytes of an image; got {type(content).__name__}")
        return name, io.BytesIO(content), self.labels[index]


class _HubImages(_Images):
    """A dataset's rows, their pictures as they are stored."""

    def __init__(self, name: str, split: str) -> None:
        import datasets

        self.name = name
        try:
            rows = datasets.load_dataset(name, split=split)
        except Exception as error:  # of the network, the cache, the hub, or a missing split
            raise ValueError(f"the dataset {name!r}, split {split!r}: {error}") from error
        self.column = _column(rows.column_names, name)
        if not isinstance(rows.features[self.column], datasets.Image):
            raise ValueError(f"pictures need to be images; {name} has {rows.features[self.column]}")
        self.rows = rows.cast_column(self.column, datasets.Image(decode=False))
        self.labels = [*self.rows["label"]]
        if not all(isinstance(label, int) for label in self.labels):
            raise ValueError(
                f"labels need to be whole numbers; {name} has {rows.features['label']}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def opened(self, index: int) -> tuple[str, Any, int]:
        found = self.rows[index][self.column]
        file = io.BytesIO(found["bytes"]) if found["bytes"] else found["path"]
        return f"row {index} of {self.name}", file, self.labels[index]


class _FolderImages(_Images):
    """Pictures in a folder for every class."""

    def __init__(self, folder: Path) -> None:
        classes = sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
        found = [[p for p in sorted(c.iterdir()) if p.suffix.lower() in _SUFFIXES] for c in classes]
        empty = [c.name for c, files in zip(classes, found, strict=True) if not files]
        if empty or not classes:
            came = f"folders {empty} without images" if empty else "no folders"
            raise ValueError(f"{_WANTED}; {folder} has {came}")
        self.items = [(file, label) for label, files in enumerate(found) for file in files]

    def __len__(self) -> int:
        return len(self.items)

    def opened(self, index: int) -> tuple[str, Any, int]:
        file, label = self.items[index]
        return str(file), file, label
