"""Export: a network as an ONNX file or a torch.export program, small on disk and checked."""

import io
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from torch.utils._pytree import tree_map

from bozzetto.batches import Batch, batch_size, call, copied, device_of, split_batch, tensors
from bozzetto.nn import Signs
from bozzetto.nn.signs import pack_signs

__all__ = ["export"]

OLDEST_OPSET = 18  # of ONNX: what torch's exporter writes, and where the bit operations begin
_LARGEST_ONNX = 2**31  # bytes of a protobuf message
_FEW = 64  # values in a buffer that is not worth packing

Run = Callable[[Batch], list[Tensor]]


def export(
    model: nn.Module,
    path: Path | str,
    example: Batch,
    *,
    batch: Literal["any", "fixed"] = "any",
    opset: int = OLDEST_OPSET,
) -> Path:
    """Write a network for other programs: `.onnx` for ONNX runtimes, `.pt2` for torch.export.load.

    Signs are written as bits and positions as the shortest integers, and spread out where the file
    is run (an ONNX runtime does so once, as it loads). Before the file is put in place it is loaded
    and compared with the network on the example and, for `batch="any"`, on twice the example: their
    relative difference is at most the root of the type's rounding error.

    Args:
        model: in evaluation mode on the CPU; not changed.
        path: of the file, whose suffix says what is written; replaced whole or not at all.
        example: a batch, see `bozzetto.batches`. Its mapping's names are the inputs' names; its
            "labels" are left out.
        batch: whether the file takes batches of any size. Tensors of the example whose first axis
            has the length of the first tensor's are taken for batched.
        opset: of ONNX, at least 18.

    Raises:
        ValueError: for another suffix, an older opset, a network in training mode or on another
            device, a network that is too large for ONNX, or an example without tensors.
        ImportError: for ONNX without `pip install 'bozzetto[onnx]'`.
        RuntimeError: if torch cannot export the network, or what was written computes otherwise.
    """
    path, writers = Path(path), {".onnx": _write_onnx, ".pt2": _write_program}
    if path.suffix not in writers:
        raise ValueError(f"an exported file ends in {' or '.join(writers)}; got {path.name!r}")
    if opset < OLDEST_OPSET:
        raise ValueError(f"an ONNX file needs opset >= {OLDEST_OPSET}; got {opset}")
    inputs = _inputs(model, example, batch)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        partial = Path(folder) / path.name
        run = writers[path.suffix](packed(model), partial, inputs, batch, opset)
        for given in [inputs, *([_twice(inputs)] if batch == "any" else [])]:
            _compare(model, run, given)
        partial.replace(path)
    return path


def _inputs(model: nn.Module, example: Batch, batch: str) -> Batch:
    """The example without labels, of two or more where the size is free; the model checked."""
    if batch not in ("any", "fixed"):
        raise ValueError(f"batch is 'any' or 'fixed'; got {batch!r}")
    training = [name or "the network" for name, m in model.named_modules() if m.training]
    if training:
        raise ValueError(f"an export needs evaluation mode, model.eval(); training: {training[:3]}")
    args, kwargs, _ = split_batch(example)
    kwargs = {name: value for name, value in kwargs.items() if name != "labels"}
    given: Batch = (args, None) if args else kwargs
    size = batch_size(given)
    places = {device_of(model), *(t.device for t in tensors([args, kwargs]))}
    if others := {str(place) for place in places if place.type != "cpu"}:
        raise ValueError(f"an export needs the network and the example on the CPU; got {others}")
    return _twice(given) if batch == "any" and size == 1 else given


def _twice(given: Batch) -> Batch:
    """The same batch twice, one after the other."""
    size = batch_size(given)
    return tree_map(lambda t: torch.cat([t, t]) if _batched(t, size) else t, given)


def _batched(value: Any, size: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == size


class _Bits(nn.Module):
    """A parametrization: ±c as one bit a value."""

    places: Tensor  # (8,) the bits of a byte

    def __init__(self, like: Tensor, scale: float) -> None:
        super().__init__()
        self.shape, self.dtype, self.scale = like.shape, like.dtype, scale
        self.register_buffer("places", 2 ** torch.arange(8, dtype=torch.uint8), persistent=False)

    def forward(self, bits: Tensor) -> Tensor:
        """The values: (⌈count/8⌉,) of uint8 -> the buffer's shape."""
        positive = ~torch.bitwise_and(bits.unsqueeze(1), self.places).bool().flatten()
        values = positive[: self.shape.numel()].view(self.shape).to(self.dtype)
        return values * (2 * self.scale) - self.scale

    def right_inverse(self, values: Tensor) -> tuple[Tensor]:  # a tuple may change the type
        """The bits."""
        return (pack_signs(values),)


class _Narrow(nn.Module):
    """A parametrization: whole multiples of c as short integers."""

    def __init__(self, like: Tensor, short: torch.dtype, scale: float = 1) -> None:
        super().__init__()
        self.dtype, self.short, self.scale = like.dtype, short, scale

    def forward(self, short: Tensor) -> Tensor:
        """The values."""
        values = short.to(self.dtype)
        return values if self.scale == 1 else values * self.scale

    def right_inverse(self, values: Tensor) -> tuple[Tensor]:
        """The integers."""
        return ((values / self.scale).round().to(self.short),)


def _shorter(values: Tensor) -> nn.Module | None:
    """How a buffer takes fewer bytes and loses nothing, if there is a way."""
    if values.numel() < _FEW or values.is_complex():
        return None
    if values.is_floating_point():
        sizes = values.abs().unique()
        if len(sizes) == 1 and sizes[0] > 0:
            return _Bits(values, sizes.item())
        if len(sizes) == 2 and sizes[0] == 0:
            return _Narrow(values, torch.int8, sizes[1].item())
        return None
    for short in (torch.uint8, torch.int8, torch.int16, torch.int32):
        limits = torch.iinfo(short)
        fits = limits.min <= values.min() and values.max() <= limits.max
        if short.itemsize < values.dtype.itemsize and fits:
            return _Narrow(values, short)
    return None


def packed(model: nn.Module) -> nn.Module:
    """A copy that computes the same and whose signs and positions take the fewest bytes.

    For export: the copy spreads them out at every call, unless what runs it does so once.
    """
    made = copied(model)
    for module in list(made.modules()):
        if isinstance(module, Signs):
            del module.bits  # the layer's weight says the same
    for module, name, values in list(_buffers(made)):
        if (way := _shorter(values)) is not None:
            register_parametrization(module, name, way.eval(), unsafe=True)
    return made.requires_grad_(False)


def _buffers(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for module in model.modules():
        for name, values in module.named_buffers(recurse=False):
            yield module, name, values


def _exported(model: nn.Module, inputs: Batch, batch: str) -> torch.export.ExportedProgram:
    """The program, whose batched inputs share one free first axis where wanted."""
    args, kwargs, _ = split_batch(inputs)
    size, free = batch_size(inputs), torch.export.Dim("batch") if batch == "any" else None

    def axes(value: Any) -> Any:
        return {0: free} if free is not None and _batched(value, size) else None

    shapes = tree_map(axes, (args, kwargs)) if free is not None else None
    with torch.no_grad(), _one_error():
        return torch.export.export(
            model, args, kwargs, dynamic_shapes=_named(model, shapes), strict=False
        )


@contextmanager
def _one_error() -> Iterator[None]:
    """What torch raises, of many kinds and many lines, as a RuntimeError of one."""
    try:
        yield
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RuntimeError(f"torch cannot export this network: {reason}") from error


def _named(model: nn.Module, shapes: Any) -> Any:
    """Shapes as torch.export takes them: positional ones, or by the names of the arguments."""
    if shapes is None:
        return None
    args, kwargs = shapes
    return kwargs or args


def _write_program(model: nn.Module, path: Path, inputs: Batch, batch: str, opset: int) -> Run:
    content = io.BytesIO()  # torch ends the whole process when the disk is full
    torch.export.save(_exported(model, inputs, batch), content)
    path.write_bytes(content.getbuffer())
    loaded = torch.export.load(path).module()
    return lambda given: list(tensors(call(loaded, given)))


def _write_onnx(model: nn.Module, path: Path, inputs: Batch, batch: str, opset: int) -> Run:
    if (size := sum(t.nbytes for t in model.state_dict().values())) >= _LARGEST_ONNX:
        raise ValueError(f"an ONNX file holds less than 2 GiB, a .pt2 file more; got {size} bytes")
    try:
        import onnxruntime
        import onnxscript
    except ImportError:
        raise ImportError("ONNX needs: pip install 'bozzetto[onnx]'") from None
    program = _exported(model, inputs, batch)
    with _one_error():
        made = torch.onnx.export(
            program, opset_version=opset, dynamo=True, optimize=False, verbose=False
        )
    assert made is not None
    limit = 8 * _FEW  # bytes: no constant is spread out that is not tiny
    onnxscript.optimizer.optimize_ir(made.model, input_size_limit=limit, output_size_limit=limit)
    for node in made.model.graph:
        node.metadata_props.clear()  # paths and lines of the writer's machine
    made.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(given: Batch) -> list[Tensor]:
        args, kwargs, _ = split_batch(given)
        values = [value.numpy() for value in tensors([*args, *kwargs.values()])]
        names = [value.name for value in session.get_inputs()]
        feed = dict(zip(names, values, strict=True))
        return [torch.from_numpy(value) for value in session.run(None, feed)]

    return run


def _compare(model: nn.Module, run: Run, given: Batch) -> None:
    """Raise unless what was written computes what the network does."""
    with torch.no_grad():
        wanted, found = list(tensors(call(model, given))), run(given)
    if [y.shape for y in wanted] != [y.shape for y in found]:
        shapes = [tuple(y.shape) for y in found], [tuple(y.shape) for y in wanted]
        raise RuntimeError(f"the exported network returns shapes {shapes[0]}, needed {shapes[1]}")
    for ours, theirs in zip(wanted, found, strict=True):
        most = torch.finfo(ours.dtype).eps ** 0.5 if ours.is_floating_point() else 0.0
        if not (off := _distance(ours, theirs)) <= most:
            raise RuntimeError(f"the exported network differs from its origin by {off:.2g}")


def _distance(ours: Tensor, theirs: Tensor) -> float:
    """Relative to ours; infinite unless what is not finite is the same in both."""
    finite = ours.isfinite()
    if not torch.isclose(ours[~finite], theirs[~finite].to(ours), equal_nan=True).all():
        return math.inf
    ours, theirs = ours[finite].double(), theirs[finite].double()
    return float((ours - theirs).norm() / ours.norm().clamp_min(1e-30))
