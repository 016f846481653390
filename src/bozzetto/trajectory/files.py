"""A trained network on disk: its shape as JSON, its weights as safetensors."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from bozzetto.io import write_folder
from bozzetto.trajectory.network import Predictor, Shape

__all__ = ["check_folder", "load_predictor", "save_predictor"]

_SHAPE, _WEIGHTS = "predictor.json", "predictor.safetensors"


def check_folder(folder: Path, *, force: bool = False) -> None:
    """Refuse a folder whose files a network would replace or hide among.

    Raises:
        FileExistsError: if it is not empty and `force` is not set, or holds other files.
    """
    if folder.is_file():
        raise FileExistsError(f"an output folder is needed; {folder} is a file")
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if found and not force:
        raise FileExistsError(f"an empty output folder is needed (or force); {folder} is not empty")
    if foreign := found - {_SHAPE, _WEIGHTS}:
        raise FileExistsError(
            f"only a saved network is overwritten; {folder} also holds {sorted(foreign)[:5]}"
        )


def save_predictor(folder: Path, predictor: Predictor) -> None:
    """Write a network into a folder, which is made if needed: complete or not at all."""

    def write(new: Path) -> None:
        state = {name: value.contiguous() for name, value in predictor.state_dict().items()}
        save_file(state, new / _WEIGHTS)
        text = json.dumps(asdict(predictor.shape), indent=1)
        (new / _SHAPE).write_text(text + "\n", encoding="utf-8")

    write_folder(folder, write)


def load_predictor(folder: Path | str) -> Predictor:
    """The network of a folder, ready to predict.

    Raises:
        FileNotFoundError: if the folder holds none.
        ValueError: if the shape or the weights are not those of a network.
    """
    folder = Path(folder)
    for name in (_SHAPE, _WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no network: it has no {name}")
    try:
        shape = Shape(**json.loads((folder / _SHAPE).read_text(encoding="utf-8")))
        with torch.device("meta"):  # memory is taken for what the file holds only
            predictor = Predictor(shape)
        state = load_file(folder / _WEIGHTS)
        if wrong := [name for name, value in state.items() if value.dtype != torch.float32]:
            raise ValueError(f"weights are float32; {wrong[:5]} are not")
        predictor.load_state_dict(state, assign=True)
    except (ValueError, TypeError, RuntimeError, RecursionError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no network of this version: {error}") from error
    return predictor.eval()
