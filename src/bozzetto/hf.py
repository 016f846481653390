"""Hugging Face: architectures of transformers, models of the hub; all imported late."""

import json
import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from bozzetto.linalg import seeded

__all__ = ["architecture", "described", "fetched", "pretrained"]

_PARTS = re.compile(r"^(n|num)_|layer|depth|label")
_MOST_PARTS, _MOST_NUMBER = 1 << 20, 1 << 32  # layers, heads, labels; ids, thetas
_HARMFUL = {"auto_map", "quantization_config", "use_pretrained_backbone", "_name_or_path"}


def described(model: nn.Module) -> str | None:
    """The architecture of a transformers model as JSON: class, configuration, how it generates.

    None for any other model, and for one whose class is not of that library itself.
    """
    home = sys.modules.get("transformers")
    if home is None or not type(model).__module__.startswith("transformers.models."):
        return None
    known: Any = model
    generation = getattr(known, "generation_config", None)
    data = {
        "class": type(model).__name__,
        "config": _harmless(known.config.to_dict()) | {"dtype": str(known.dtype).split(".")[1]},
        "generation": None if generation is None else generation.to_dict(),
    }
    return json.dumps(data, indent=2)


def architecture(text: str, size: int) -> nn.Module:
    """The model that `described` wrote, with random weights: only transformers' own code runs.

    Args:
        text: JSON.
        size: bytes of the weights that come with it; a model out of all proportion to them is
            refused before memory is taken for it.

    Raises:
        ValueError: for anything else, or without transformers.
    """
    try:
        data = json.loads(text)
        name, options, generation = data["class"], data["config"], data["generation"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"an architecture has class, config and generation; {error}") from error
    kind, config = _configured(name, options, size)
    try:
        with seeded(0, torch.device("cpu")):
            made: Any = kind(config)
        if generation is not None:
            made.generation_config = type(made.generation_config).from_dict(generation)
        dtype = getattr(torch, config.dtype) if isinstance(config.dtype, str) else config.dtype
        return made if dtype is None else made.to(dtype)
    except Exception as error:  # whatever transformers raises for values that make no sense
        raise ValueError(f"{name} cannot be built of this configuration; {error}") from error


def pretrained(folder: Path) -> nn.Module:
    """The model of a transformers folder, with its weights: only transformers' own code runs.

    Raises:
        ValueError: unless there are config.json and safetensors for every weight, or without
            transformers.
    """
    try:
        options = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (name,) = options["architectures"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{folder}/config.json needs to name one architecture; {error}") from error
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    kind, config = _configured(name, options, size)
    try:
        found, told = kind.from_pretrained(
            folder, config=config, local_files_only=True, use_safetensors=True,
            trust_remote_code=False, output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # whatever transformers raises for files that make no sense
        raise ValueError(f"{folder} cannot be read as a {name}; {error}") from error
    if missing := sorted(told["missing_keys"]):
        raise ValueError(f"{folder} lacks weights of a {name}: {missing[:5]}")
    return found


def _configured(name: Any, options: Any, size: int) -> tuple[Any, Any]:
    """A class of transformers' own and its configuration, of which a model can be built.

    Raises:
        ValueError: for anything else, and for what would be too large; see `architecture`.
    """
    try:
        import transformers
    except ImportError:
        raise ValueError("a transformers model needs: pip install 'bozzetto[hf]'") from None
    try:
        kind: Any = getattr(transformers, name)
        if not issubclass(kind, transformers.PreTrainedModel):
            raise TypeError(f"{name} is no model of transformers")
        _check_counts(options)
        configuration: Any = kind.config_class
        config = configuration.from_dict(_harmless(options))
        with seeded(0, torch.device("cpu")), _Bounded(size), torch.device("meta"):
            kind(config)
    except Exception as error:  # whatever transformers raises for values that make no sense
        raise ValueError(
            f"an architecture names a class of transformers and its configuration; {error}"
        ) from error
    return kind, config


def _check_counts(options: Any) -> None:
    """Refuse whole numbers beyond those of any model: lists would be made of them."""
    if isinstance(options, dict):
        for name, value in options.items():
            most = _MOST_PARTS if _PARTS.search(str(name)) else _MOST_NUMBER
            if isinstance(value, int) and abs(value) > most:
                raise ValueError(f"{name!r} needs to be at most {most}; got {value}")
    if isinstance(options, dict | list):
        for value in options.values() if isinstance(options, dict) else options:
            _check_counts(value)


class _Bounded(TorchFunctionMode):
    """Counts the values of new tensors, on the meta device, where they take no memory.

    A tensor counts as at least 1,024 values: endless small ones are refused too.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.left = max(1 << 25, 256 * size)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and not any(found is a for a in args):
            self.left -= max(1024, found.numel())
        if self.left < 0:
            raise ValueError("it is out of all proportion to the weights that come with it")
        return found


def _harmless(options: Any) -> Any:
    """A configuration without what would load code or weights, or tells of the writer's machine."""
    if isinstance(options, list):
        return [_harmless(value) for value in options]
    if not isinstance(options, dict):
        return options
    return {
        name: _harmless(value)
        for name, value in options.items()
        if name not in _HARMFUL and "implementation" not in str(name)
    }


def fetched(name: str, files: Collection[str]) -> Path:
    """The folder into which these files of a model of the hub, "user/name", are downloaded.

    Raises:
        ImportError: without `pip install 'bozzetto[hf]'`.
        FileNotFoundError: if the hub has no such model, refuses it, or gives no sensible answer.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise ImportError(
            f"there is no folder {name!r}; models of the hub need: pip install 'bozzetto[hf]'"
        ) from None
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(files)))
    except Exception as error:  # its own, and whatever it raises for answers that make no sense
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(
            f"there is no folder {name!r}, and the hub gave no model of that name: {reason}"
        ) from error
