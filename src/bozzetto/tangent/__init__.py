"""Tangent kernels: of infinitely wide networks of any architecture, and of finite ones, fast.

`Program` gives the limit (NNGP and NTK) of an architecture written with matrices, vectors and
functions; `fast` the same for common architectures, quickly; `empirical_ntk` that of a given torch
network. The source is Yang, *Tensor Programs II* (arXiv 2006.14548).
"""

from bozzetto.tangent.activation import (
    Activation,
    Erf,
    Exp,
    Gelu,
    Identity,
    Rectifier,
    Sin,
    Step,
    relu,
)
from bozzetto.tangent.empirical import (
    ProbedKernel,
    TangentOperator,
    empirical_ntk,
    probed_ntk,
)
from bozzetto.tangent.kernel import Program
from bozzetto.tangent.program import Bias, Input, Matrix, Moment, Vector, add, apply, stack
from bozzetto.tangent.quadrature import HermiteSeries, Quadrature
from bozzetto.tangent.realise import Realised
from bozzetto.tangent.trace import UnreadableError, trace

__all__ = [
    "Activation",
    "Bias",
    "Erf",
    "Exp",
    "Gelu",
    "HermiteSeries",
    "Identity",
    "Input",
    "Matrix",
    "Moment",
    "ProbedKernel",
    "Program",
    "Quadrature",
    "Realised",
    "Rectifier",
    "Sin",
    "Step",
    "TangentOperator",
    "UnreadableError",
    "Vector",
    "add",
    "apply",
    "empirical_ntk",
    "probed_ntk",
    "relu",
    "stack",
    "trace",
]
