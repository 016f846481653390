"""Sketched convolutions under torch's names, plain and transposed, of one to three axes."""

import math
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from bozzetto.nn.parts import Down, JointDown, Lowered, Raised, Up
from bozzetto.nn.sketched import Form, Place, Shape, Sides, Sketched
from bozzetto.sketch import Sketch

Size = int | tuple[int, ...]


class _SketchConv(Sketched):
    """A convolution whose cores see k of the channels.

    form="channel" sketches channels only; "joint" sketches whole input patches as the paper writes
    it: taps times the work for practically the same variance.
    """

    spatial: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        k: int,
        *,
        stride: Size = 1,
        padding: Size | str = 0,
        output_padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        terms: int = 1,
        sides: Sides = "both",
        family: str = "fold",
        form: Form = "channel",
        seed: int = 0,
        device: Place = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        place: dict[str, Any] = {"bias": False, "device": device, "dtype": dtype, "groups": groups}
        geometry: dict[str, Any] = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "padding_mode": padding_mode,
        }
        if self.transposed():
            geometry["output_padding"] = output_padding
        elif output_padding:
            raise ValueError(f"output_padding belongs to transposed layers; got {output_padding}")
        if form not in ("channel", "joint") or (form == "joint" and self.transposed()):
            raise ValueError(f"form is 'channel', or 'joint' unless transposed; got {form!r}")
        core = partial(self.plain, kernel_size=kernel_size, **geometry, **place)
        taps = (kernel_size,) * self.spatial if isinstance(kernel_size, int) else kernel_size
        n, m, dim = in_channels // groups, out_channels // groups, -1 - self.spatial

        def outputs(sketch: Sketch, scale: float) -> nn.Module:
            return Raised(core(in_channels, sketch.k * groups), Up(sketch, dim, groups, scale))

        def inputs(sketch: Sketch, scale: float) -> nn.Module:
            wide = sketch.k * groups
            if form == "joint":
                down = JointDown(sketch, core(in_channels, wide), groups, scale)
                return Lowered(down, self.plain(wide, out_channels, 1, **place))
            return Lowered(Down(sketch, dim, groups, scale), core(wide, out_channels))

        super().__init__(
            Shape(n, m, groups, tuple(taps), dim),
            k,
            outputs,
            inputs,
            bias=bias,
            terms=terms,
            sides=sides,
            family=family,
            seed=seed,
            wide=math.prod(taps) if form == "joint" else 1,
        )

    @classmethod
    def transposed(cls) -> bool:
        """Whether the cores are transposed convolutions."""
        return cls.plain.__name__.startswith("ConvTranspose")

    def fan_in(self) -> int:
        """Torch's, which of a transposed layer is that of its output."""
        shape = self.shape
        return shape.m * math.prod(shape.taps) if self.transposed() else shape.patch

    @classmethod
    def _geometry(cls, layer: Any) -> dict[str, Any]:
        names = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"]
        names += ["groups", "padding_mode"] + ["output_padding"] * cls.transposed()
        return {name: getattr(layer, name) for name in names}


class SketchConv1d(_SketchConv):
    """nn.Conv1d with sketched channels: torch's arguments, then k and those of `Sketched`."""

    plain, spatial = nn.Conv1d, 1


class SketchConv2d(_SketchConv):
    """nn.Conv2d with sketched channels: torch's arguments, then k and those of `Sketched`."""

    plain, spatial = nn.Conv2d, 2


class SketchConv3d(_SketchConv):
    """nn.Conv3d with sketched channels: torch's arguments, then k and those of `Sketched`."""

    plain, spatial = nn.Conv3d, 3


class SketchConvTranspose1d(_SketchConv):
    """nn.ConvTranspose1d with sketched channels."""

    plain, spatial = nn.ConvTranspose1d, 1


class SketchConvTranspose2d(_SketchConv):
    """nn.ConvTranspose2d with sketched channels."""

    plain, spatial = nn.ConvTranspose2d, 2


class SketchConvTranspose3d(_SketchConv):
    """nn.ConvTranspose3d with sketched channels."""

    plain, spatial = nn.ConvTranspose3d, 3
