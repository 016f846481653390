"""How many times smaller than the dense weight the cores of a sketched layer are."""

from torch import nn

from bozzetto.nn.blocks import BlockTable, Isometry
from bozzetto.nn.parts import Hashed, JointDown, Side, Sum

__all__ = ["reductions"]


def reductions(model: nn.Module) -> dict[nn.Parameter, float]:
    """{core: c} of every sketched layer, c its dense weight's values over those of its cores.

    Layers without sketches (factors of low rank, Tucker's cores, chosen signs) have no part in it.
    """
    found: dict[nn.Parameter, float] = {}
    for layer in model.modules():
        if isinstance(layer, Sum):
            cores = [core for core in map(_core, layer.terms) if core is not None]
            kept = sum(core.numel() for core, _ in cores)
            found |= {core: dense / kept for core, dense in cores}
    return found


def _core(term: nn.Module) -> tuple[nn.Parameter, float] | None:
    """The trained core of a sketched term, and the values of the dense weight."""
    parts = [term] if isinstance(term, Hashed) else [*term.children()]
    sketches = [p.sketch for p in parts if isinstance(p, Side | JointDown | Hashed | BlockTable)]
    weights = [getattr(p, "weight", None) for p in parts if not isinstance(p, Side | JointDown)]
    if not sketches or len(weights) != 1 or not isinstance(weights[0], nn.Parameter):
        return None
    core = weights[0]
    first = sketches[0]
    times = first.blocks if isinstance(first, Isometry) else first.n / first.k
    return core, core.numel() * times
