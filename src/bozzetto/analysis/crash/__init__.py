"""What happens when neurons fail: guaranteed bounds, and fault injection."""

from bozzetto.analysis.crash.activations import Activation, NoSoundBound, activation
from bozzetto.analysis.crash.bound import CrashBound, crash_bound
from bozzetto.analysis.crash.compare import CrashComparison, compare_crashes, crash_by_layer
from bozzetto.analysis.crash.critical import CriticalNeurons, critical_neurons
from bozzetto.analysis.crash.faults import (
    BitFlips,
    Byzantine,
    Crash,
    DroppedConnections,
    NeuronFault,
    StuckAt,
    WeightFault,
)
from bozzetto.analysis.crash.hardening import with_crashes
from bozzetto.analysis.crash.measure import CrashReport, crash
from bozzetto.analysis.crash.rules import Affine, rule
from bozzetto.analysis.crash.sampled import Sampling
from bozzetto.analysis.crash.tolerance import Tolerance, tolerance

__all__ = [
    "Activation",
    "Affine",
    "BitFlips",
    "Byzantine",
    "Crash",
    "CrashBound",
    "CrashComparison",
    "CrashReport",
    "CriticalNeurons",
    "DroppedConnections",
    "NeuronFault",
    "NoSoundBound",
    "Sampling",
    "StuckAt",
    "Tolerance",
    "WeightFault",
    "activation",
    "compare_crashes",
    "crash",
    "crash_bound",
    "crash_by_layer",
    "critical_neurons",
    "rule",
    "tolerance",
    "with_crashes",
]
