"""Damage: whatever a loader stumbles over in a file is told as a ValueError that names the file."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TypeVar

__all__ = ["reader"]

T = TypeVar("T")


def reader(load: Callable[[Path], T]) -> Callable[[Path], T]:
    """A loader that raises ValueError with the file's name for anything wrong with its content.

    Errors of the file system, missing packages and errors that name the file pass as they are.
    """

    @wraps(load)
    def checked(path: Path) -> T:
        try:
            return load(path)
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # decoders raise errors of many types, some of their own
            told = type(error) is ValueError and str(path) in str(error)
            if told or (isinstance(error, OSError) and error.filename is not None):
                raise
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"{path} is damaged or of another format: {what}") from error

    return checked
