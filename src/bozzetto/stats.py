"""What calibration keeps of a layer: moments of its input patches and of its output's gradient."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from bozzetto.batches import call, split_batch, tensors
from bozzetto.expand import expand
from bozzetto.linalg import random_signs
from bozzetto.maps import LinearMap, NotLinear, linear_map
from bozzetto.moments import WIDE, SketchedMoment
from bozzetto.ops import Lookup, Op

_CHUNK = 1 << 24  # patch values formed at once

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Stats:
    """Moments of one layer over all positions of the calibration batches; float64, on the CPU.

    Attributes:
        moment: C = E[x xᵀ] of the input patches, (g, d, d); for a look-up the share of every
            index, (n,); a `SketchedMoment` for d > `bozzetto.moments.WIDE`.
        mean: μ = E[x], (g, d); None for a look-up.
        gradient: E[g gᵀ] of the loss's gradient at the output, (g, m, m), or None where no
            gradient arrived; a `SketchedMoment` for m > WIDE.
        positions: number of output positions seen.
        shapes: input shapes of the layer's calls in the first batch.
    """

    moment: Tensor | SketchedMoment
    mean: Tensor | None
    gradient: Tensor | SketchedMoment | None
    positions: int
    shapes: tuple[tuple[int, ...], ...]


Sum = Tensor | SketchedMoment


def _squares(rows: Tensor) -> Sum:
    """Σ x xᵀ over rows (g, b, n), float64."""
    return SketchedMoment.of(rows) if rows.shape[-1] > WIDE else (rows.mT @ rows).double()


def _plus(total: Sum | None, part: Sum) -> Sum:
    if isinstance(part, SketchedMoment):
        return part if total is None else cast(SketchedMoment, total) + part
    return part if total is None else cast(Tensor, total).add_(part)


@dataclass
class _Meter:
    """Running sums of one layer."""

    op: Op
    vocabulary: int
    moment: Sum | None = None
    mean: Tensor | float = 0.0
    gradient: Sum | None = None
    positions: int = 0
    graded: int = 0
    shapes: list[tuple[int, ...]] = field(default_factory=list)

    def add_input(self, x: Tensor) -> None:
        if isinstance(self.op, Lookup):
            counts = torch.bincount(x.flatten(), minlength=self.vocabulary)
            self.moment = _plus(self.moment, counts.double())
            self.positions += x.numel()
            return
        for part in chunks(x, self.op):
            rows = self.op.patches(part)  # (g, b, d)
            self.moment = _plus(self.moment, _squares(rows))
            self.mean = self.mean + rows.sum(1).double()
            self.positions += rows.shape[1]

    def add_gradient(self, gradient: Tensor) -> None:
        rows = gradient.movedim(self.op.dim, -1).flatten(0, -2).unflatten(-1, (self.op.groups, -1))
        rows = _single(rows).movedim(1, 0)  # (g, b, m)
        self.gradient = _plus(self.gradient, _squares(rows))
        self.graded += rows.shape[1]

    def finite(self) -> bool:
        """Whether the inputs so far were; the mean of a look-up's is."""
        return bool(torch.as_tensor(self.mean).isfinite().all())

    def result(self) -> Stats:
        assert self.moment is not None
        mean = self.mean / self.positions if isinstance(self.mean, Tensor) else None
        gradient = None if self.gradient is None else (self.gradient / self.graded).cpu()
        moment = (self.moment / self.positions).cpu()
        mean = None if mean is None else mean.cpu()
        return Stats(moment, mean, gradient, self.positions, tuple(self.shapes))


def _single(x: Tensor) -> Tensor:
    """Half precision raised to float32, where sums of squares hold."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def chunks(x: Tensor, op: Op) -> Iterator[Tensor]:
    """The input in pieces whose patches fit in memory."""
    x = _single(x.detach())
    taps = getattr(op, "taps", ())
    if not taps:
        yield x
        return
    x = x if x.ndim == len(taps) + 2 else x.unsqueeze(0)
    wide = x[0].numel() * math.prod(taps)
    yield from x.split(max(1, _CHUNK // max(1, wide)))


def layer_maps(model: nn.Module) -> dict[str, LinearMap]:
    """Every module that is a linear map, by its first path."""
    found = {}
    for path, module in model.named_modules():
        try:
            found[path] = linear_map(module)
        except NotLinear:
            continue
    return found


def collect(
    model: nn.Module, batches: Iterable[Any], *, loss: Loss | None = None
) -> dict[str, Stats]:
    """Run calibration batches and keep the moments of each layer of the expanded model.

    Args:
        model: any module; a copy runs in evaluation mode.
        batches: see `bozzetto.batches`; one pass.
        loss: (output, target) -> scalar, whose gradient weighs the layers' errors. Without one, the
            gradient is that of the output's inner product with fixed random signs, which weighs
            by the squared change of the output.

    Returns:
        {path: Stats} of the layers that were reached.

    Raises:
        ValueError: for no batches, or a NaN or infinite value (naming batch and layer).
    """
    model = expand(model).eval()
    for p in model.parameters():
        p.requires_grad_(p.is_floating_point())
    meters = {p: _Meter(m.op, m.inputs) for p, m in layer_maps(model).items()}
    count = 0
    with torch.enable_grad():
        for count, batch in enumerate(batches, 1):
            _measure(model, batch, meters, loss, count)
    if not count:
        raise ValueError("calibration needs at least one batch; got none")
    return {path: meter.result() for path, meter in meters.items() if meter.positions}


def _measure(
    model: nn.Module, batch: Any, meters: Mapping[str, _Meter], loss: Loss | None, number: int
) -> None:
    """One batch forward and backward, with every layer's meter attached."""
    outputs: list[tuple[_Meter, Tensor]] = []

    def hook(path: str, meter: _Meter) -> Callable[..., Tensor]:
        def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = inputs[0]
            meter.add_input(x)
            if not meter.finite():
                raise ValueError(
                    f"calibration needs finite values; in batch {number} the input of layer "
                    f"{path!r} has NaN or infinity"
                )
            if number == 1:
                meter.shapes.append(tuple(x.shape))
            if not output.requires_grad:
                return output
            outputs.append((meter, output))
            return output.clone()  # an in-place activation must not change what we keep

        return keep

    modules = dict(model.named_modules())
    handles = [modules[p].register_forward_hook(hook(p, m)) for p, m in meters.items()]
    try:
        score = _score(call(model, batch), batch, loss)
    finally:
        for handle in handles:
            handle.remove()
    if not outputs or not score.requires_grad:
        return
    gradients = torch.autograd.grad(score, [y for _, y in outputs], allow_unused=True)
    for (meter, _), gradient in zip(outputs, gradients, strict=True):
        if gradient is not None:
            meter.add_gradient(gradient)


def _score(output: Any, batch: Any, loss: Loss | None) -> Tensor:
    """The scalar whose gradient tells which errors matter."""
    if loss is not None:
        return loss(output, split_batch(batch)[2])
    total = torch.zeros(())
    graded = [y for y in tensors(output) if y.is_floating_point() and y.requires_grad]
    for place, value in enumerate(graded):
        signs = random_signs(place, value.numel()).to(value)
        total = total.to(value.device) + (value * signs.view_as(value)).sum()
    return total
