"""The demo: a network trained on handwritten digits, made small in three ways and measured.

`target`, `network`, `calibration` and `held_out` are for the command too: `bozzetto compress
bozzetto.demo:target --data bozzetto.demo:calibration --keep 0.1 --out small`.
"""

from bozzetto.demo.digits import calibration, held_out, network, target
from bozzetto.demo.result import Demo, Variant
from bozzetto.demo.run import demo
from bozzetto.demo.ways import Scale

__all__ = ["Demo", "Scale", "Variant", "calibration", "demo", "held_out", "network", "target"]
