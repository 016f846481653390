"""What a command shows: results on standard output, progress and errors on standard error."""

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, track
from rich.table import Table

from bozzetto.report import columns, shown

__all__ = ["complain", "following", "show", "spinner", "watched"]

T = TypeVar("T")

_messages = Console(stderr=True)
_WIDE = 200  # characters, for what is no terminal


def show(as_json: bool, head: Mapping[str, Any], tables: Mapping[str, Any]) -> None:
    """Print facts and tables for people, or both as one JSON object for programs.

    Args:
        as_json: for programs.
        head: facts by name.
        tables: lists of rows by name.
    """
    if as_json:
        data = _plain(dict(head) | dict(tables))
        sys.stdout.write(json.dumps(data, allow_nan=False, indent=1) + "\n")
        return
    console = Console()
    console = console if console.is_terminal else Console(width=_WIDE)
    for title, rows in tables.items():
        names = columns(rows)
        table = Table(title=title, title_justify="left")
        for name in names:
            table.add_column(name.replace("_", " "), overflow="fold")
        for row in rows:
            table.add_row(*[shown(row.get(name)) for name in names])
        console.print(table)
    for name, value in head.items():
        console.print(f"{name.replace('_', ' ')}: {shown(value)}", highlight=False, markup=False)


def _plain(value: Any) -> Any:
    """A value as JSON has it: numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def complain(message: str) -> None:
    """Say on one line what went wrong."""
    _messages.print(f"bozzetto: {message}", style="red", markup=False, soft_wrap=True)


def watched(items: Iterable[T], what: str) -> Iterable[T]:
    """The items, with a bar of how many have gone by."""
    return track(items, what, console=_messages, transient=True, disable=_hidden())


@contextmanager
def spinner() -> Iterator[Callable[[str], None]]:
    """Gives a function that says what goes on; shown with the time that it takes."""
    parts = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*parts, console=_messages, transient=True, disable=_hidden()) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda what: bar.update(task, description=what)


@contextmanager
def following() -> Iterator[Callable[[Any], None]]:
    """Gives a callback for `bozzetto.train`; shown as a bar of steps, with pace and time left."""
    with Progress(console=_messages, transient=True, disable=_hidden()) as bar:
        task = bar.add_task("training", total=None)
        yield lambda p: bar.update(
            task,
            completed=p.step,
            total=p.steps,
            description=f"epoch {p.epoch} of {p.epochs}, loss {p.loss:.3g}, "
            f"{p.samples_per_second:.3g} samples/s",
        )


def _hidden() -> bool:
    return not _messages.is_terminal
