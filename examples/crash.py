"""
When neurons fail
=================

Every neuron of a network falls silent with probability p. How far off is the output then?
Injection breaks the network many times and measures; the bound is guaranteed, and needs no test
set. The small network made from it is broken in the same way.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import bozzetto as bz
from bozzetto.analysis.crash import compare_crashes

digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)
batches = list(zip(x.split(64), y.split(64), strict=True))
with torch.random.fork_rng():
    torch.default_generator.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )
bz.train(model, batches, bz.Recipe(epochs=6, lr=3e-3))
small, _ = bz.compress(model, 0.2, batches)

# %%

p = [1e-3, 1e-2, 1e-1]
found = compare_crashes(
    {"target": model, "a fifth of it": small}, [(x[:16], y[:16])], p, patterns=2000, bounded=16
)
for row in found.rows():
    print(
        f"{row['name']:13} p={row['p']:<7g} measured {row['error']:.2e}, at most {row['bound']:.2e}"
    )

figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
found.figure(ax)
