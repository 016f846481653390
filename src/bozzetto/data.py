"""What the command's MODEL and DATA name: callables to import, folders to read."""

import importlib
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from sysconfig import get_path
from typing import Any

from torch import nn

from bozzetto.batches import Batch
from bozzetto.hf import pretrained
from bozzetto.images import hub_batches, image_batches
from bozzetto.io import load, read
from bozzetto.plan import Plan

__all__ = ["Batches", "Model", "blames_user", "failure", "load_batches", "load_model"]

_OURS = Path(__file__).parent
_HUB = "hub:"
_NAME = r"[A-Za-z_]\w*"
_CALLABLE = re.compile(rf"{_NAME}(\.{_NAME})*:{_NAME}")


@dataclass(frozen=True)
class Model:
    """A model that the user named.

    Attributes:
        network: in evaluation mode where it comes from a folder.
        source: the string that names it.
        target: of a saved one, what it was made from, as its builder gives it.
        plan: of a saved one.
    """

    network: nn.Module
    source: str
    target: "Model | None" = None
    plan: Plan | None = None


def load_model(text: str, *, build: str | None = None, data: str | None = None) -> Model:
    """The model that a string names.

    Args:
        text: "package.module:callable", a folder written by `bozzetto.save`, or a transformers
            folder.
        build: the user's own name of the target of a saved folder, in the same three forms.
        data: the user's DATA. A saved folder may come from a stranger, so the builder that it
            names is imported only if it is in the top-level package that this names too.

    Raises:
        ValueError: for anything else, or a callable that fails or gives no model.
    """
    if _CALLABLE.fullmatch(text):
        return Model(_built(text), text)
    folder = Path(text)
    if (folder / "config.json").is_file() and not (folder / "plan.json").is_file():
        return Model(pretrained(folder), text)
    if folder.is_dir():
        return _saved(folder, build, data)
    raise ValueError(
        "MODEL needs to be package.module:callable, a folder written by bozzetto or a local "
        f"transformers folder; got {text!r}, and there is no such folder"
    )


def _saved(folder: Path, build: str | None, data: str | None) -> Model:
    saved = read(folder)
    target = load_model(build or _trusted(folder, saved.source, data), data=data)
    small = load(folder, target.network)
    return Model(small, str(folder), target, saved.plan)


def _trusted(folder: Path, source: str | None, data: str | None) -> str:
    """The builder that a folder names, if the user names its package too."""
    if source is None:
        raise ValueError(
            f"{folder} does not say what builds its target: add --model package.module:callable"
        )
    own = data is not None and _CALLABLE.fullmatch(data)
    if own and _CALLABLE.fullmatch(source) and _package(source) == _package(str(data)):
        return source
    raise ValueError(
        f"{folder} says that {source!r} builds its target; a folder is not believed, since that "
        f"runs code: if you trust it, add --model {source}"
    )


def _package(text: str) -> str:
    return re.split(r"[.:]", text)[0]


def _built(text: str) -> nn.Module:
    with _current_folder_importable():
        made = _called(text, _imported(text))
    if not isinstance(made, nn.Module):
        raise ValueError(f"{text} needs to return a torch.nn.Module; got {type(made).__name__}")
    return made


class Batches:
    """Batches of a callable that gives an iterator: it is called again for every pass."""

    def __init__(self, make: Callable[[], Iterator[Batch]]) -> None:
        self._make, self._length = make, None

    def __iter__(self) -> Iterator[Batch]:
        """A new pass, in which what is called may import as it could when it was named."""
        with _current_folder_importable():
            yield from self._make()

    def __len__(self) -> int:
        """Number of batches; a TypeError, as where there is no length, until they were counted."""
        if self._length is None:
            raise TypeError("the batches were not counted yet")
        return self._length

    def count(self) -> None:
        """Count the batches in a pass over them."""
        self._length = sum(1 for _ in self)


def load_batches(text: str, *, size: int = 64, seed: int = 0) -> Iterable[Batch]:
    """The batches that a string names, to be iterated as often as wanted.

    Args:
        text: "package.module:callable" that gives batches, a parquet file, a folder of parquet
            files or of images, or "hub:NAME" or "hub:NAME:SPLIT" for a dataset of the Hugging Face
            hub; see `bozzetto.images`.
        size: images in a batch, for files and folders.
        seed: of the order of images, another one in every pass.

    Raises:
        ValueError: for anything else, or a callable that fails or gives nothing to iterate.
    """
    if text.startswith(_HUB):
        name, _, split = text.removeprefix(_HUB).partition(":")
        return hub_batches(name, split=split or "train", size=size, seed=seed)
    if not _CALLABLE.fullmatch(text):
        return image_batches(Path(text), size=size, seed=seed)
    with _current_folder_importable():
        make = _imported(text)
        made = _called(text, make)
    if not isinstance(made, Iterable):
        raise ValueError(f"{text} needs to return batches to iterate; got {type(made).__name__}")
    return Batches(make) if isinstance(made, Iterator) else made


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    sys.path.insert(0, "")
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove("")


def _imported(text: str) -> Callable[[], Any]:
    module, _, name = text.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{text} cannot be imported: {failure(error)}") from error
    if not callable(found):
        came = "has none" if found is None else f"is a {type(found).__name__}"
        raise ValueError(f"{text} needs {name!r} to be a callable in {module!r}; it {came}")
    return found


def _called(text: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (Exception, SystemExit) as error:
        raise ValueError(f"calling {text} failed: {failure(error)}") from error


def failure(error: BaseException) -> str:
    """What an error says, on one line; if it is not ours also its type and the user's line."""
    message = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    if frames and Path(frames[-1].filename).is_relative_to(_OURS):
        return message
    found = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if _of_user(f.filename)]
    return f"{type(error).__name__}: {message}" + (f" ({found[-1]})" if found else "")


def blames_user(error: BaseException) -> bool:
    """Whether an error passed through code that is neither ours nor installed."""
    return any(_of_user(f.filename) for f in traceback.extract_tb(error.__traceback__))


def _of_user(file: str) -> bool:
    if file.startswith("<") or "site-packages" in file:
        return False
    return not any(Path(file).is_relative_to(place) for place in (_OURS, get_path("stdlib")))
