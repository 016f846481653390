"""The front: size against quality of a target and of several networks made from it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import torch
from torch import nn

from bozzetto.batches import Batch, call, device_of, in_mode, tensors, to
from bozzetto.prices import price_model

__all__ = ["Front", "Point", "front"]

_QUALITY = "1 − relative output error"


@dataclass(frozen=True)
class Point:
    """One network: what it costs and how well it does.

    Attributes:
        network: its name.
        params: trained values.
        flops: floating-point operations on the first batch.
        bytes: of parameters and saved buffers.
        params_kept: fraction of the target's; so are flops_kept and bytes_kept.
        error: ‖ŷ − y‖ / ‖y‖ over the outputs on all batches, y the target's.
        quality: metrics by name.
    """

    network: str
    params: int
    flops: int
    bytes: int
    params_kept: float
    flops_kept: float
    bytes_kept: float
    error: float
    quality: dict[str, float]


@dataclass(frozen=True)
class Front:
    """The target first, then the networks made from it."""

    points: tuple[Point, ...]

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> Self:
        """From rows as `rows` gives them.

        Raises:
            ValueError: for other rows.
        """
        names = [field.name for field in fields(Point) if field.name != "quality"]
        points = []
        for row in rows:
            if missing := [name for name in names if name not in row]:
                raise ValueError(f"a row of a front has {names}; this one lacks {missing}")
            quality = {name: value for name, value in row.items() if name not in names}
            points.append(Point(**{name: row[name] for name in names}, quality=quality))
        return cls(tuple(points))

    def rows(self) -> list[dict[str, object]]:
        """One row a network."""
        rows: list[dict[str, object]] = [asdict(point) for point in self.points]
        for row, point in zip(rows, self.points, strict=True):
            del row["quality"]
            row |= point.quality
        return rows

    def figure(self, ax: Any) -> None:
        """The first metric (without one, 1 − error) against the fraction of values and operations.

        The target's is a dotted line.
        """
        name = next(iter(self.points[0].quality), _QUALITY)
        target, *small = [(p, p.quality.get(name, 1 - p.error)) for p in self.points]
        for kind, label in (("params_kept", "trained values"), ("flops_kept", "multiply-adds")):
            pairs = sorted((getattr(p, kind), value) for p, value in small)
            ax.plot(*zip(*pairs, strict=True), "o-", label=label)
        ax.axhline(target[1], linestyle=":", linewidth=1, color="C2", label="target")
        ax.set_xscale("log", base=2)
        kept = [k for p, _ in small for k in (p.params_kept, p.flops_kept)]
        ax.set_xlim(min(0.45, *(0.9 * k for k in kept)), max(1.1, *(1.1 * k for k in kept)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_xlabel("fraction kept")
        ax.set_ylabel(name)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)


def front(
    model: nn.Module,
    networks: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    *,
    metrics: Mapping[str, Callable[[nn.Module], float]] | None = None,
) -> Front:
    """Price and measure a target and networks made from it.

    Args:
        model: the target; not changed.
        networks: by name; not changed.
        batches: on which outputs are compared; see `bozzetto.batches`.
        metrics: further measures by name, a network -> a number.

    Raises:
        ValueError: without networks or batches, for one called "target" or a metric called as an
            attribute of `Point`, or if outputs differ in shape.
    """
    held = list(batches)
    taken = (
        {"target"} & networks.keys(),
        {field.name for field in fields(Point)} & (metrics or {}).keys(),
    )
    if any(taken):
        raise ValueError(f"a front has columns and a row of these names already: {taken}")
    if not networks or not held:
        raise ValueError(f"a front needs networks and batches; got {len(networks)}, {len(held)}")
    found = {"target": model, **networks}
    errors = {name: _error(model, network, held) for name, network in found.items()}
    prices = {name: price_model(network, held[0])._asdict() for name, network in found.items()}
    whole = prices["target"]
    points = []
    for name, network in found.items():
        kept = {f"{r}_kept": price / whole[r] for r, price in prices[name].items()}
        quality = {metric: by(network) for metric, by in (metrics or {}).items()}
        points.append(Point(name, **prices[name], **kept, error=errors[name], quality=quality))
    return Front(tuple(points))


def _error(model: nn.Module, small: nn.Module, batches: Iterable[Batch]) -> float:
    """Relative error of all floating tensors that the networks return."""
    wrong = whole = 0.0
    with in_mode(model, training=False), in_mode(small, training=False), torch.no_grad():
        for batch in batches:
            ours, theirs = (
                [y for y in tensors(call(net, to(batch, device_of(net)))) if y.is_floating_point()]
                for net in (small, model)
            )
            if [y.shape for y in ours] != [y.shape for y in theirs]:
                raise ValueError(
                    f"both networks need to return the same shapes; the target gives "
                    f"{[tuple(y.shape) for y in theirs]}, got {[tuple(y.shape) for y in ours]}"
                )
            for mine, y in zip(ours, theirs, strict=True):
                wrong += float((mine.double().cpu() - y.double().cpu()).square().sum())
                whole += float(y.double().square().sum())
    return (wrong / whole) ** 0.5 if whole else float(wrong > 0)
