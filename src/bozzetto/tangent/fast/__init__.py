"""Fast kernels of common architectures, each equal to its program's."""

from bozzetto.tangent.fast.batch import batch_normalised_kernels
from bozzetto.tangent.fast.chain import Kernels, Layer, convolutional_kernels, dense_kernels
from bozzetto.tangent.fast.sequence import (
    Recurrence,
    Transformer,
    recurrent_kernels,
    transformer_kernels,
)

__all__ = [
    "Kernels",
    "Layer",
    "Recurrence",
    "Transformer",
    "batch_normalised_kernels",
    "convolutional_kernels",
    "dense_kernels",
    "recurrent_kernels",
    "transformer_kernels",
]
