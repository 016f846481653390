"""The multiple-choice knapsack: one candidate a group, least total loss, within limits."""

import ctypes
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

Numbers = NDArray[np.float64]
_QUIET = Lock()


class Unreachable(ValueError):
    """No plan meets the budget; the message says the smallest reachable."""


def least(groups: Sequence[int], costs: Numbers) -> float:
    """The smallest total cost of one candidate a group."""
    found: dict[int, float] = {}
    for group, cost in zip(groups, costs, strict=True):
        found[group] = min(float(cost), found.get(group, np.inf))
    return sum(found.values())


@contextmanager
def _quiet_output() -> Iterator[None]:
    """Discard what C code writes to the standard output.

    HiGHS prints a line of its own on some instances whatever `disp` says, and a program's output
    may be JSON that another program reads.
    """
    flush = ctypes.CDLL(None).fflush if os.name == "posix" else lambda _: None
    flush(None)
    try:
        kept = os.dup(1)
    except OSError:  # there is no standard output to protect
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(nowhere)
        os.close(kept)


def knapsack(
    groups: Sequence[int], costs: Mapping[str, Numbers], loss: Numbers, limits: Mapping[str, int]
) -> list[int]:
    """Indices of the chosen candidates, found exactly by HiGHS (branch and bound).

    Or, of a problem that takes it a minute, the best ones found by then.

    Args:
        groups: the group of each candidate, 0 … G − 1.
        costs: integer cost of each candidate, per resource.
        loss: what each candidate loses, finite.
        limits: upper bound of the total cost, per resource.

    Raises:
        Unreachable: if no choice keeps all limits at once.
    """
    if not len(groups):
        return []
    one = csr_array((np.ones(len(groups)), (list(groups), range(len(groups)))))
    constraints = [LinearConstraint(one, 1, 1)]
    for name, limit in limits.items():
        # Costs are whole numbers; half a unit of slack less the solver's tolerance keeps it exact.
        bound = (limit + 0.5) / max(limit, 1) - 1e-6
        constraints.append(LinearConstraint(costs[name][None] / max(limit, 1), -np.inf, bound))
    with _QUIET, _quiet_output():
        solved = milp(
            loss / max(float(loss.max()), 1e-300),
            constraints=constraints,
            integrality=np.ones(len(groups)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 1e-6, "time_limit": 60},
        )
    if solved.x is None:
        raise Unreachable(f"no plan keeps {dict(limits)} all at once: {solved.message}")
    chosen = [i for i, x in enumerate(solved.x) if x > 0.5]
    spent = {name: sum(costs[name][chosen]) for name in limits}
    assert all(spent[name] <= limits[name] for name in limits), (spent, limits)
    return chosen
