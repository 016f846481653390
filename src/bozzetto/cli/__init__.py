"""The command: it parses, calls the library and prints; see `bozzetto --help`."""

import sys
from collections.abc import Sequence

from cyclopts import CycloptsError

from bozzetto.cli import crash, kernel, look, sharing, shrink, trajectory, tune
from bozzetto.cli.app import app
from bozzetto.data import blames_user, failure
from bozzetto.knapsack import Unreachable
from bozzetto.terminal import complain

__all__ = [
    "app", "crash", "kernel", "look", "main", "run", "sharing", "shrink", "trajectory", "tune",
]  # fmt: skip

BAD_INPUT, USAGE, NO_PLAN = 1, 2, 3  # exit codes
_BAD = (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, ImportError)


def run(tokens: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        app(tokens, exit_on_error=False)
    except CycloptsError:
        return USAGE  # cyclopts has told
    except Exception as error:
        if not isinstance(error, _BAD) and not blames_user(error):
            raise
        complain(failure(error))
        return NO_PLAN if isinstance(error, Unreachable) else BAD_INPUT
    return 0


def main() -> None:
    """The console script."""
    sys.exit(run())
