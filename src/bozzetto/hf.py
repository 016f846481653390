"""Hugging Face: architectures of transformers, models of the hub; all imported late."""

import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bozzetto.linalg import seeded

__all__ = ["architecture", "described", "fetched"]

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


def architecture(text: str) -> nn.Module:
    """The model that `described` wrote, with random weights: only transformers' own code runs.

    Raises:
        ValueError: for anything else, or without transformers.
    """
    try:
        import transformers
    except ImportError:
        raise ValueError("a transformers model needs: pip install 'bozzetto[hf]'") from None
    try:
        data = json.loads(text)
        name, options, generation = data["class"], data["config"], data["generation"]
        kind: Any = getattr(transformers, name)
        if not issubclass(kind, transformers.PreTrainedModel):
            raise TypeError(f"{name} is no model of transformers")
        config = kind.config_class.from_dict(_harmless(options))  # type: ignore
        with seeded(0, torch.device("cpu")):
            made: Any = kind(config)
        if generation is not None:
            made.generation_config = type(made.generation_config).from_dict(generation)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"an architecture names a class of transformers and its configuration; {error}"
        ) from error
    return made if config.dtype is None else made.to(config.dtype)


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
        FileNotFoundError: if the hub has no such model, refuses it or cannot be reached.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise ImportError(
            f"there is no folder {name!r}; models of the hub need: pip install 'bozzetto[hf]'"
        ) from None
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(files)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(
            f"there is no folder {name!r}, and the hub gave no model of that name: {reason}"
        ) from error
