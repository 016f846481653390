"""Interaction modes, labelled from what the vehicles then did: who goes before whom.

The mode of agent i towards agent j is read from their true futures. Each vehicle is three discs
along its axis. A conflict is a pair of times (t_i, t_j), at most 3 s apart, at which the discs
touch; the earliest one counts. Who is there first was going, the other was yielding; without a
conflict they ignore each other.
"""

import numpy as np
from numpy.typing import NDArray

from bozzetto.trajectory.scenes import FUTURE, RATE, Scene

__all__ = ["GOING", "IGNORING", "MODES", "UNKNOWN", "YIELDING", "label", "modes_of_pairs"]

MODES = ("ignoring", "going", "yielding")
IGNORING, GOING, YIELDING, UNKNOWN = 0, 1, 2, -1
APART = 3 * RATE  # steps between the two passages of one place
MARGIN = 0.2  # metres between discs that still touch
_STILL = 0.3  # metres a step moves at least, to tell the heading

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_STEP = np.arange(FUTURE)
_FIRST = np.minimum(_STEP[:, None], _STEP)  # (t_i, t_j): the earlier of the two
_LAST = np.maximum(_STEP[:, None], _STEP)
_NEVER = FUTURE**2
_ORDER = np.where(_LAST - _FIRST <= APART, _FIRST * FUTURE + _LAST, _NEVER)  # to be smallest
_OF_THE_OTHER = np.array([IGNORING, YIELDING, GOING, UNKNOWN])
_CHUNK = 64  # pairs at a time


def label(scene: Scene, edges: Ints) -> Ints:
    """The mode of the target of each edge towards its source.

    Args:
        scene: with futures.
        edges: sources j and targets i; (2, e).

    Returns:
        (e,): IGNORING, GOING, YIELDING, or UNKNOWN where both arrive at once or a future that is
        needed is missing.
    """
    pairs, place = np.unique(np.sort(edges, 0), axis=1, return_inverse=True)  # (2, p), (e,)
    modes = _modes(scene, *pairs)[place.ravel()]  # numpy 2.0.0 keeps the axis
    swapped = edges[1] > edges[0]  # the pair's first is then the source
    return np.where(swapped, _OF_THE_OTHER[modes], modes)


def modes_of_pairs(touch: NDArray[np.bool_]) -> Ints:
    """The modes of i, from whether i at t_i touches j at t_j; (p, FUTURE, FUTURE) -> (p,)."""
    order = np.where(touch, _ORDER, _NEVER)
    best = order.min((1, 2))
    first, last = np.divmod(np.where(best == _NEVER, 0, best), FUTURE)
    row = np.arange(len(touch))
    going, yielding = touch[row, first, last], touch[row, last, first]
    at_once = (first == last) | (going & yielding)
    passing = np.where(at_once, UNKNOWN, np.where(going, GOING, YIELDING))
    return np.where(best == _NEVER, IGNORING, passing)


def _modes(scene: Scene, i: Ints, j: Ints) -> Ints:
    """The modes of agents i towards agents j."""
    discs, radius = _discs(scene)
    reach = radius[i] + radius[j] + MARGIN
    whole = np.logical_and.reduce(scene.known, axis=1)
    modes = np.where(whole[i] & whole[j], IGNORING, UNKNOWN)
    near = np.flatnonzero(_boxes_touch(discs, scene.known, i, j, reach))
    for part in np.array_split(near, len(near) // _CHUNK + 1):
        a, b = i[part], j[part]
        touch = _touch(discs[a], discs[b], reach[part])
        found = modes_of_pairs(touch & scene.known[a][:, :, None] & scene.known[b][:, None])
        modes[part] = np.where(found == IGNORING, modes[part], found)
    return modes


def _discs(scene: Scene) -> tuple[Floats, Floats]:
    """Centres of three discs a vehicle at all future steps, (a, FUTURE, 3, 2), and radii, (a,)."""
    length, width = scene.size.T
    heading = _headings(scene)
    shift = np.maximum(length - width, 0)[:, None] / 2 * np.array([-1.0, 0.0, 1.0])  # (a, 3)
    axis = np.stack([np.cos(heading), np.sin(heading)], -1)  # (a, FUTURE, 2)
    return scene.future[:, :, None] + shift[:, None, :, None] * axis[:, :, None], width / 2


def _headings(scene: Scene) -> Floats:
    """At every future step: of the step's displacement, the one before where it stood still."""
    path = np.concatenate([scene.past[:, -1:], scene.future], 1)
    moved = np.diff(path, axis=1)
    angle = np.arctan2(moved[..., 1], moved[..., 0])
    moving = np.hypot(moved[..., 0], moved[..., 1]) > _STILL
    angle = np.concatenate([scene.heading[:, None], angle], 1)
    moving = np.concatenate([np.ones((len(angle), 1), bool), moving], 1)
    last = np.maximum.accumulate(np.where(moving, np.arange(FUTURE + 1), 0), 1)
    return np.take_along_axis(angle, last, 1)[:, 1:]


def _boxes_touch(
    discs: Floats, known: NDArray[np.bool_], i: Ints, j: Ints, reach: Floats
) -> NDArray[np.bool_]:
    """Whether the boxes around all known discs of two agents come within reach; (p,)."""
    seen = known[:, :, None, None]
    low = np.where(seen, discs, np.inf).min((1, 2))  # (a, 2)
    high = np.where(seen, discs, -np.inf).max((1, 2))
    far = np.maximum(low[i] - high[j], low[j] - high[i])  # infinite where nothing is known
    return (far <= reach[:, None]).all(1)


def _touch(a: Floats, b: Floats, reach: Floats) -> NDArray[np.bool_]:
    """Which pairs of times have discs, (p, FUTURE, 3, 2), within reach; (p, FUTURE, FUTURE)."""
    p = len(a)
    middle = a.mean((1, 2), keepdims=True)  # near zero the squares below stay exact
    a, b = (a - middle).reshape(p, 3 * FUTURE, 2), (b - middle).reshape(p, 3 * FUTURE, 2)
    squares = (a**2).sum(-1)[:, :, None] + (b**2).sum(-1)[:, None] - 2 * a @ b.swapaxes(1, 2)
    close = squares <= (reach**2)[:, None, None]
    return close.reshape(p, FUTURE, 3, FUTURE, 3).any((2, 4))
