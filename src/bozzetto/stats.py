"""What calibration keeps of a layer: moments of its input patches and of its output's gradient."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from bozzetto.batches import batches_of, call, first_input, split_batch, tensors
from bozzetto.expand import expand
from bozzetto.linalg import random_signs
from bozzetto.maps import LinearMap, NotLinear, linear_map
from bozzetto.moments import WIDE, Products, SketchedMoment, WideProducts
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

    def crashed(self, p: float) -> Self:
        """As if every input were 0 with probability p, each on its own.

        C becomes (1−p)² C + p(1−p) diag C and μ becomes (1−p) μ. What is planned and fitted with
        it imitates the target also when neurons fail. A look-up's indices do not crash.

        Raises:
            ValueError: for p outside [0, 1).
        """
        if not 0 <= p < 1:
            raise ValueError(f"a crash probability of inputs lies in [0, 1); got {p}")
        if self.mean is None or not p:
            return self
        moment = self.moment
        if isinstance(moment, Tensor):
            diagonal = torch.diag_embed(moment.diagonal(dim1=-2, dim2=-1))
            moment = (1 - p) ** 2 * moment + p * (1 - p) * diagonal
        else:
            moment = moment.crashed(p)
        return replace(self, moment=moment, mean=(1 - p) * self.mean)


@dataclass
class _Meter:
    """Running sums of one layer."""

    op: Op
    inputs: int
    seen: Products | WideProducts
    graded: Products | WideProducts
    counts: Tensor | float = 0.0  # of the indices of a look-up
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    plain: bool = True  # called with its input and nothing else

    @classmethod
    def of(cls, m: LinearMap) -> Self:
        """For the inputs and outputs of a map."""
        seen, graded = (Products() if n <= WIDE else WideProducts() for n in m.block[::-1])
        return cls(m.op, m.inputs, seen, graded)

    def add_input(self, x: Tensor) -> bool:
        """Whether it is finite."""
        if isinstance(self.op, Lookup):
            self.counts = self.counts + torch.bincount(x.flatten(), minlength=self.inputs).double()
            return True
        for part in chunks(x, self.op):
            rows = self.op.patches(part)  # (g, b, d)
            self.seen.add(rows, rows)
        return bool(x.isfinite().all())

    def add_gradient(self, gradient: Tensor) -> bool:
        """Whether it is finite."""
        channels = gradient.movedim(self.op.dim, -1)
        rows = channels.reshape(-1, self.op.groups, channels.shape[-1] // self.op.groups)
        rows = _single(rows).movedim(1, 0)  # (g, b, m)
        self.graded.add(rows, rows)
        return bool(gradient.isfinite().all())

    def result(self) -> Stats | None:
        """None if nothing came, or more than an input."""
        if not self.plain:
            return None
        gradient = self.graded.means()[0] if self.graded.count else None
        if isinstance(self.counts, Tensor) and (count := int(self.counts.sum())):
            return Stats(self.counts.cpu() / count, None, gradient, count, tuple(self.shapes))
        if not self.seen.count:
            return None
        moment, mean, _ = self.seen.means()
        return Stats(moment, mean, gradient, self.seen.count, tuple(self.shapes))


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
    wide = math.prod(x.shape[1:]) * math.prod(taps)
    yield from x.split(max(1, _CHUNK // max(1, wide)))


def _finite(x: Tensor) -> bool:
    """Whether all values are; what is on the meta device has none."""
    return x.is_meta or bool(x.isfinite().all())


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
    model: nn.Module,
    batches: Iterable[Any],
    *,
    loss: Loss | None = None,
    paths: Collection[str] | None = None,
) -> dict[str, Stats]:
    """Run calibration batches and keep the moments of each layer of the expanded model.

    Args:
        model: any module; a copy runs in evaluation mode.
        batches: see `bozzetto.batches`; one pass.
        loss: (output, target) -> scalar, whose gradient weighs the layers' errors. Without one, the
            gradient is that of the output's inner product with fixed random signs, which weighs
            by the squared change of the output.
        paths: of layers of the expanded model, to keep the moments of no others; None: of all.

    Returns:
        {path: Stats} of the layers that were reached, each call with an input and nothing else.

    Raises:
        ValueError: for no batches, a NaN or infinite value in an input or a gradient (naming batch
            and layer), or weights that are not finite.
    """
    with torch.inference_mode(False), torch.enable_grad():
        model = expand(model, weights="shared").eval()
        if wrong := [n for n, p in model.named_parameters() if not _finite(p)]:
            raise ValueError(f"a target needs finite weights; {wrong[:5]} have NaN or infinity")
        for p in model.parameters():
            p.requires_grad_(p.is_floating_point())
        maps = layer_maps(model)
        meters = {p: _Meter.of(m) for p, m in maps.items() if paths is None or p in paths}
        count = 0
        for count, batch in enumerate(batches_of(batches), 1):
            _measure(model, batch, meters, loss, count)
    if not count:
        raise ValueError("calibration needs at least one batch; got none")
    found: dict[str, Stats] = {}
    while meters:  # one after the other, as sums and results are large
        path = next(iter(meters))
        if (stats := meters.pop(path).result()) is not None:
            found[path] = stats
    return found


def _measure(
    model: nn.Module, batch: Any, meters: Mapping[str, _Meter], loss: Loss | None, number: int
) -> None:
    """One batch forward and backward, with every layer's meter attached."""
    outputs: list[tuple[str, Tensor]] = []

    def hook(path: str, meter: _Meter) -> Callable[..., Tensor]:
        def keep(_: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
            meter.plain = meter.plain and len(args) + len(kwargs) == 1
            if not meter.plain:
                return output
            x = first_input(args, kwargs)
            if not meter.add_input(x):
                raise _not_finite("the input", path, number)
            if number == 1:
                meter.shapes.append(tuple(x.shape))
            if not output.requires_grad:
                return output
            outputs.append((path, output))
            return output.clone()  # an in-place activation must not change what we keep

        return keep

    modules = dict(model.named_modules())
    handles = [
        modules[p].register_forward_hook(hook(p, m), with_kwargs=True) for p, m in meters.items()
    ]
    try:
        score = _score(_output(model, batch, number), batch, loss)
    finally:
        for handle in handles:
            handle.remove()
    if not outputs or not score.requires_grad:
        return
    gradients = torch.autograd.grad(score, [y for _, y in outputs], allow_unused=True)
    for (path, _), gradient in zip(outputs, gradients, strict=True):
        if gradient is not None and not meters[path].add_gradient(gradient):
            raise _not_finite("the gradient at the output", path, number)


def _not_finite(what: str, path: str, number: int) -> ValueError:
    return ValueError(
        f"calibration needs finite values; in batch {number} {what} of layer {path!r} has NaN or "
        "infinity"
    )


def _output(model: nn.Module, batch: Any, number: int) -> Any:
    """What the model gives; if it fails, told with what it was given."""
    try:
        return call(model, batch)
    except (RuntimeError, TypeError, IndexError) as error:
        takes = {f"{p.dtype} on {p.device}" for p in model.parameters()}
        came = [f"{x.dtype} {tuple(x.shape)} on {x.device}" for x in tensors(batch)]
        raise ValueError(
            f"calibration needs batches that the model takes (its weights are {sorted(takes)}); "
            f"batch {number} of {came} fails: {error}"
        ) from error


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
