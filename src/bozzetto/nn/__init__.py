"""Layers as sums of small trained cores behind fixed sketches."""

from bozzetto.nn.convs import (
    SketchConv1d,
    SketchConv2d,
    SketchConv3d,
    SketchConvTranspose1d,
    SketchConvTranspose2d,
    SketchConvTranspose3d,
)
from bozzetto.nn.folded import Folded
from bozzetto.nn.inference import for_inference
from bozzetto.nn.layers import SketchEmbedding, SketchLinear
from bozzetto.nn.parts import Down, Hashed, JointDown, Lowered, Raised, Sum, Up
from bozzetto.nn.signs import Signs
from bozzetto.nn.sketched import Sketched
from bozzetto.nn.stack import Stack

__all__ = [
    "Down",
    "Folded",
    "Hashed",
    "JointDown",
    "Lowered",
    "Raised",
    "Signs",
    "SketchConv1d",
    "SketchConv2d",
    "SketchConv3d",
    "SketchConvTranspose1d",
    "SketchConvTranspose2d",
    "SketchConvTranspose3d",
    "SketchEmbedding",
    "SketchLinear",
    "Sketched",
    "Stack",
    "Sum",
    "Up",
    "for_inference",
]
