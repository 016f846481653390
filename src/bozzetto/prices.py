"""What layers and models cost, counted on the thing itself: trained values, multiply-adds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bozzetto.batches import call
from bozzetto.expand import expand
from bozzetto.maps import LinearMap
from bozzetto.ops import Lookup
from bozzetto.sites import Site, lookup_twin
from bozzetto.stats import Stats


class Price(NamedTuple):
    """Trained values, and floating-point operations (two a multiply-add) on one batch."""

    params: int
    flops: int


def count_params(model: nn.Module) -> int:
    """Distinct parameters' values; tied ones count once."""
    return sum(p.numel() for p in model.parameters())


def count_flops(run: Callable[[], Any]) -> int:
    """Operations of the matrix products and convolutions that `run` performs."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def price_model(model: nn.Module, batch: Any) -> Price:
    """Of a whole model on one batch, composites counted by their parts."""
    expanded = expand(model).eval()
    return Price(count_params(model), count_flops(lambda: call(expanded, batch)))


def price_site(
    site: Site,
    stats: Mapping[str, Stats],
    build: Callable[[LinearMap], nn.Module] = LinearMap.module,
) -> Price:
    """Of the layer that `build` makes of a site's map, with everything tied to it.

    Counted on the meta device, on the input shapes of the first calibration batch.
    """
    with torch.device("meta"):
        layer = build(_on_meta(site.map))
        flops = _layer_flops(layer, site.map, stats[site.path].shapes)
        for path, other in site.transposed:
            twin = lookup_twin(layer, cast(Lookup, other.op).padding_idx)
            flops += _layer_flops(twin, other, stats[path].shapes if path in stats else ())
    return Price(count_params(layer), flops)


def _on_meta(m: LinearMap) -> LinearMap:
    return LinearMap(m.weight.to("meta"), None if m.bias is None else m.bias.to("meta"), m.op)


def _layer_flops(layer: nn.Module, m: LinearMap, shapes: Sequence[tuple[int, ...]]) -> int:
    dtype = torch.int64 if isinstance(m.op, Lookup) else m.weight.dtype
    inputs = [torch.empty(shape, dtype=dtype, device="meta") for shape in shapes]
    return sum(count_flops(lambda x=x: layer(x)) for x in inputs)
