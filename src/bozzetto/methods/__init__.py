"""Methods: ways to write a linear map with fewer numbers, by name."""

from bozzetto.methods.blocks import Blocks
from bozzetto.methods.hybrid import Hybrid
from bozzetto.methods.lowrank import LowRank
from bozzetto.methods.method import Method, Objective
from bozzetto.methods.signs import SignsMethod
from bozzetto.methods.sketched import SketchedMethod
from bozzetto.methods.tucker import Tucker

__all__ = [
    "AUTO",
    "AUTO_BYTES",
    "METHODS",
    "Blocks",
    "Hybrid",
    "LowRank",
    "Method",
    "Objective",
    "SignsMethod",
    "SketchedMethod",
    "Tucker",
    "make_method",
]

METHODS: dict[str, type[Method]] = {
    "blocks": Blocks,
    "hybrid": Hybrid,
    "lowrank": LowRank,
    "signs": SignsMethod,
    "sketched": SketchedMethod,
    "tucker": Tucker,
}
# Random directions never beat the data's own on a trained layer: `sketched` and `blocks` are for
# asking, and for training from scratch.
AUTO = ("lowrank", "tucker")
# Signs hold few trained values, but a bit for every other weight, and compute as much as the dense
# layer: they are tried where memory is bounded. `hybrid` searches many times: it is for asking.
AUTO_BYTES = (*AUTO, "signs")


def make_method(name: str, options: dict[str, object] | None = None) -> Method:
    """The method of that name with its options.

    Raises:
        ValueError: for an unknown name or options that it does not take.
    """
    if name not in METHODS:
        raise ValueError(f"a method is one of {sorted(METHODS)}; got {name!r}")
    try:
        return METHODS[name](**(options or {}))
    except TypeError as error:
        raise ValueError(f"method {name!r} does not take {options}: {error}") from error
