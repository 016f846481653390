"""Tangent kernels of finite torch networks."""

from bozzetto.tangent.empirical.kernel import empirical_ntk
from bozzetto.tangent.empirical.probes import ProbedKernel, TangentOperator, probed_ntk

__all__ = ["ProbedKernel", "TangentOperator", "empirical_ntk", "probed_ntk"]
