"""Interpolatron and Anderson acceleration: optimisers that mix another's recent points."""

from bozzetto.optim.anderson import Anderson
from bozzetto.optim.batchnorm import estimate_batch_norm
from bozzetto.optim.interpolatron import Interpolatron
from bozzetto.optim.mixing import Mixing

__all__ = ["Anderson", "Interpolatron", "Mixing", "estimate_batch_norm"]
