"""What layers and models cost, counted on the thing itself: values, operations, bytes, time."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bozzetto.batches import call, device_of, in_mode
from bozzetto.expand import expand
from bozzetto.maps import LinearMap
from bozzetto.ops import Lookup
from bozzetto.sites import Site, lookup_twin
from bozzetto.stats import Stats
from bozzetto.timing import sample_clocks

Build = Callable[[LinearMap], nn.Module]
_ROUNDS = 5  # of timing, of which the quickest counts


class Price(NamedTuple):
    """Trained values, floating-point operations (two a multiply-add) on one batch, bytes."""

    params: int
    flops: int
    bytes: int


def count_params(model: nn.Module) -> int:
    """Distinct parameters' values; tied ones count once."""
    return sum(p.numel() for p in model.parameters())


def count_bytes(model: nn.Module) -> int:
    """Memory of parameters and saved buffers in their own types; tied ones count once."""
    held = {id(t): t for t in model.state_dict(keep_vars=True).values() if isinstance(t, Tensor)}
    return sum(t.numel() * t.element_size() for t in held.values())


def count_flops(run: Callable[[], Any]) -> int:
    """Operations of the matrix products and convolutions that `run` performs."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def price_model(model: nn.Module, batch: Any) -> Price:
    """Of a whole model on one batch, composites counted by their parts."""
    expanded = expand(model, weights="shared").eval()
    flops = count_flops(lambda: call(expanded, batch))
    return Price(count_params(model), flops, count_bytes(model))


def price_site(site: Site, stats: Mapping[str, Stats], build: Build = LinearMap.module) -> Price:
    """Of the layer that `build` makes of a site's map, with everything tied to it.

    Counted on the meta device, on the input shapes of the first calibration batch.
    """
    m = site.map
    with torch.device("meta"):
        bias = None if m.bias is None else m.bias.to("meta")
        users = _users(site, stats, build(LinearMap(m.weight.to("meta"), bias, m.op)))
        flops = sum(count_flops(partial(layer, x)) for layer, xs in users for x in xs)
    held = nn.ModuleList([layer for layer, _ in users])
    return Price(count_params(held), flops, count_bytes(held))


Users = list[tuple[nn.Module, list[Tensor]]]


def _users(site: Site, stats: Mapping[str, Stats], layer: nn.Module) -> Users:
    """A site's layer and what is tied to it, each with empty inputs of the shapes that it gets."""
    users = [(layer, _inputs(site.map, stats[site.path]))]
    for path, other in site.transposed:
        twin = lookup_twin(layer, cast(Lookup, other.op).padding_idx)
        users.append((twin, _inputs(other, stats[path]) if path in stats else []))
    return users


def _inputs(m: LinearMap, stats: Stats) -> list[Tensor]:
    dtype = torch.int64 if isinstance(m.op, Lookup) else m.weight.dtype
    return [torch.zeros(shape, dtype=dtype) for shape in stats.shapes]


def time_site(
    site: Site, stats: Mapping[str, Stats], builds: Sequence[Build], known: dict[str, int]
) -> list[int]:
    """Nanoseconds of what each of `builds` makes of a site's map, timed side by side.

    Args:
        site: the map.
        stats: with the input shapes of the first calibration batch.
        builds: of the forms that it may take.
        known: times found before, by the form's own description; added to.
    """
    device = site.map.weight.device
    with device, torch.no_grad():
        made = [_users(site, stats, build(site.map)) for build in builds]
        names = [str([(layer, [x.shape for x in xs]) for layer, xs in users]) for users in made]
        new = {n: partial(_run, u) for n, u in zip(names, made, strict=True) if n not in known}
        known |= _nanoseconds(new, _ROUNDS, device)
    return [known[name] for name in names]


def _run(users: Users) -> None:
    for layer, xs in users:
        for x in xs:
            layer(x)


def time_models(models: Mapping[str, nn.Module], batch: Any) -> dict[str, int]:
    """Nanoseconds of a call of each model, in evaluation mode, on a batch, side by side."""
    device = device_of(next(iter(models.values())))
    with ExitStack() as modes, torch.no_grad():
        for model in models.values():
            modes.enter_context(in_mode(model, training=False))
        calls = {name: partial(call, model, batch) for name, model in models.items()}
        return _nanoseconds(calls, 5 * _ROUNDS, device)


def _nanoseconds(
    calls: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, int]:
    """Of the quickest round: other programs only ever add to the time."""
    found = sample_clocks(calls, rounds, [device])
    return {
        name: round(1e9 * min(sample.wall for sample in samples)) for name, samples in found.items()
    }
