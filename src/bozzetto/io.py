"""Saving and loading small networks as data: a plan, tensors, perhaps a card; nothing executed."""

import ctypes
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bozzetto.hf import architecture, described, fetched
from bozzetto.plan import Plan
from bozzetto.rebuilding import rebuild

__all__ = ["InvalidFolder", "Saved", "check_output", "load", "read", "save", "write_folder"]

PLAN, WEIGHTS = "plan.json", "model.safetensors"
ARCHITECTURE, CARD = "architecture.json", "README.md"
_FILES = (PLAN, WEIGHTS, ARCHITECTURE, CARD, "report.html", "report.json")
FORMAT = 1
_LARGEST_PLAN = 64 << 20  # bytes
_HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*")


class InvalidFolder(ValueError):
    """A folder that `save` did not write, or that was changed since."""


@dataclass(frozen=True)
class Saved:
    """What a folder says of itself.

    Attributes:
        folder: where.
        plan: of the small network.
        source: "package.module:callable" that builds the target, where the writer said so.
        sha256: of the weights' file.
    """

    folder: Path
    plan: Plan
    source: str | None
    sha256: str


def check_output(folder: Path | str, *, force: bool = False, also: Collection[str] = ()) -> Path:
    """The folder to write, refused if writing it would lose anything.

    Args:
        folder: to write.
        force: a saved network may be replaced.
        also: names in it that do not stand in the way then.

    Raises:
        FileExistsError: if it is not empty and `force` is not set, or holds files that are not a
            saved network's even then.
    """
    folder = Path(folder)
    if folder.is_file():
        raise FileExistsError(f"an output folder is needed; {folder} is a file")
    found = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    if found and not force:
        raise FileExistsError(f"an empty output folder is needed (or force); {folder} is not empty")
    ours = {name for name in _FILES if not (folder / name).is_dir()}
    if foreign := found - ours - {*also}:
        raise FileExistsError(
            f"only a saved network is overwritten; {folder} also holds {sorted(foreign)[:5]}"
        )
    return folder


def save(
    folder: Path | str, small: nn.Module, plan: Plan, *, source: str | None = None,
    card: str | None = None, force: bool = False,
) -> Path:  # fmt: skip
    """Write a small network: complete or not at all.

    Of a transformers model the architecture is written too, so that `load` needs no model.

    Args:
        folder: to write; must be empty or new unless `force`.
        small: from `compress`, `sketch` or `rebuild`, perhaps trained since.
        plan: that made it.
        source: "package.module:callable" of the target, for the command.
        card: README.md of the folder, for a hub; see `bozzetto.card.model_card`.
        force: replace a network that was saved there.

    Raises:
        FileExistsError: see `check_output`.
        ValueError: for a network whose state is not made of tensors, or a card without a licence.
    """
    folder = check_output(folder, force=force)
    tensors = {name: v.detach().cpu().contiguous().clone() for name, v in _tensors(small).items()}
    texts = {CARD: None if card is None else _licensed(card), ARCHITECTURE: described(small)}

    def write(new: Path) -> None:
        save_file(tensors, new / WEIGHTS)
        data = {"format": FORMAT, "source": source, "sha256": _digest(new / WEIGHTS)}
        text = json.dumps(data | {"plan": json.loads(plan.to_json())}, indent=2)
        for name, content in (texts | {PLAN: text}).items():
            if content is not None:
                (new / name).write_text(content, encoding="utf-8")

    write_folder(folder, write)
    return folder


def _licensed(card: str) -> str:
    """The card, if its front matter names a licence."""
    head = card.split("\n---", 1)[0]
    if not card.startswith("---\n") or not re.search(r"^license: *\S", head, re.MULTILINE):
        raise ValueError(
            "a card begins with front matter that names a licence, ---, license: …, ---; "
            "'unknown' is one"
        )
    return card


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """A folder with what `write` puts into it: complete or not at all, whenever the process ends.

    What was there before stays until the new one stands, and then goes.

    Raises:
        OSError: if it cannot be written; nothing has changed then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (new := aside / "new").mkdir()
        write(new)
        _flush(*new.iterdir())
        _swap(new, folder, aside / "old")
    except SafetensorError as error:  # of writing tensors: the disk's
        raise OSError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _flush(*files: Path) -> None:
    for file in files:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def _swap(new: Path, folder: Path, old: Path) -> None:
    """Put the new folder in place; the old one is left at one of the other names."""
    if not folder.exists():
        new.rename(folder)
    elif not _exchange(new, folder):
        folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            old.rename(folder)
            raise


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system cannot (it is Linux that can)."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and not rename(here, bytes(one), here, bytes(other), exchange)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state with tied tensors once."""
    found, seen = dict[str, Tensor](), set[tuple[Any, ...]]()
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(f"a saved state is made of tensors; {name!r} is {type(value)}")
        key = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if not value.numel() or key not in seen:
            seen.add(key)
            found[name] = value
    return found


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read(folder: Path | str) -> Saved:
    """What a saved folder holds, checked, without reading the weights.

    Args:
        folder: written by `save`; or the name of a model of the Hugging Face hub, "user/name", that
            was uploaded from one and is downloaded where no such folder is here.

    Raises:
        InvalidFolder: for anything that `save` did not write.
        FileNotFoundError: for a name that the hub does not know, or while it cannot be reached.
    """
    folder = _local(folder)
    for name in (PLAN, WEIGHTS):
        if not (folder / name).is_file():
            raise InvalidFolder(
                f"a saved network holds {PLAN} and {WEIGHTS}; {folder} has no {name}"
            )
    if (folder / PLAN).stat().st_size > _LARGEST_PLAN:
        raise InvalidFolder(f"{folder / PLAN} is larger than any plan")
    try:
        data = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        if not isinstance(data, dict) or set(data) != {"format", "source", "sha256", "plan"}:
            raise InvalidFolder(f"{folder / PLAN} is not the plan of a saved network")
        if data["format"] != FORMAT:
            raise InvalidFolder(
                f"this version reads format {FORMAT}; {folder} has {data['format']}"
            )
        source, digest = data["source"], data["sha256"]
        if not isinstance(digest, str) or not isinstance(source, str | None):
            raise InvalidFolder(f"{folder / PLAN} is damaged: source and sha256 are text")
        return Saved(folder, Plan.from_json(json.dumps(data["plan"])), source, digest)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InvalidFolder(f"{folder / PLAN} is damaged: {error}") from error
    except ValueError as error:
        raise InvalidFolder(f"{folder / PLAN}: {error}") from error


def _local(folder: Path | str) -> Path:
    """A folder of this machine, downloaded if it is not here and its name could be the hub's."""
    here = isinstance(folder, Path) or not _HUB.fullmatch(folder) or Path(folder).exists()
    return Path(folder) if here else fetched(str(folder), [PLAN, WEIGHTS, ARCHITECTURE])


def load(folder: Path | str, model: nn.Module | None = None) -> nn.Module:
    """The small network saved in a folder, in evaluation mode.

    Args:
        folder: written by `save`, or "user/name" of the Hugging Face hub; see `read`.
        model: the target's architecture; its weights do not matter and it is not changed. Not
            needed for a transformers model.

    Raises:
        InvalidFolder: for a folder that is truncated, foreign or tampered with.
        FileNotFoundError: see `read`.
        ValueError: without a model, or for one of another architecture or on the meta device.
    """
    saved = read(folder)
    model = _architecture(saved) if model is None else model
    if any(p.is_meta for p in model.parameters()):
        raise ValueError("load needs an architecture with memory; the model is on the meta device")
    if _digest(saved.folder / WEIGHTS) != saved.sha256:
        raise InvalidFolder(f"{saved.folder / WEIGHTS} is truncated or was changed since saving")
    small = rebuild(model, saved.plan)
    _fill_(small, _weights(saved, small))
    return small.eval()


def _architecture(saved: Saved) -> nn.Module:
    """That which the folder describes: a transformers model."""
    file = saved.folder / ARCHITECTURE
    if not file.is_file():
        made = f" (it was made from {saved.source!r})" if saved.source else ""
        raise ValueError(f"load needs the target's architecture, model=…{made}")
    if file.stat().st_size > _LARGEST_PLAN:
        raise InvalidFolder(f"{file} is larger than any architecture")
    try:
        size = (saved.folder / WEIGHTS).stat().st_size
        return architecture(file.read_text(encoding="utf-8"), size)
    except ValueError as error:
        raise InvalidFolder(f"{file}: {error}") from error


def _weights(saved: Saved, small: nn.Module) -> dict[str, Tensor]:
    """The file's tensors, read only if they are the model's in name, shape and type."""
    wanted = _tensors(small)
    try:
        with safe_open(saved.folder / WEIGHTS, framework="pt") as file:
            names = set(file.keys())
            if names != set(wanted):
                odd = sorted(names ^ set(wanted))[:5]
                raise ValueError(f"{saved.folder} is of another model: tensors {odd} do not match")
            return {name: _same(file.get_tensor(name), name, wanted[name]) for name in names}
    except SafetensorError as error:
        raise InvalidFolder(f"{saved.folder / WEIGHTS} is damaged: {error}") from error


def _same(value: Tensor, name: str, wanted: Tensor) -> Tensor:
    if value.shape != wanted.shape or value.dtype != wanted.dtype:
        raise ValueError(
            f"the folder is of another model: {name!r} is {value.dtype} {tuple(value.shape)}, "
            f"the model needs {wanted.dtype} {tuple(wanted.shape)}"
        )
    return value


def _fill_(small: nn.Module, values: Mapping[str, Tensor]) -> None:
    small.load_state_dict(dict(values), strict=False)  # the other names of tied tensors are missing
