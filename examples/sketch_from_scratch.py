"""
Train a small network directly
==============================

A network need not be trained large to be made small. `bozzetto.sketch` replaces layers by
sketched ones: random signed sums, which are only a seed, around fresh cores, which are trained.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import bozzetto as bz

digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)
batches = list(zip(x.split(64), y.split(64), strict=True))
train, held_out = batches[:23], batches[23:]

with torch.random.fork_rng():
    torch.default_generator.manual_seed(0)
    dense = nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
small, plan = bz.sketch(dense, 0.1, seed=0)
print(small)
print(f"kept {plan.kept():.1%} of the values")

# %%
# The same recipe for both. The learning rate need not be changed: the cores are drawn so that
# outputs have the variance of the dense layer's.

recipe = bz.Recipe(epochs=10, lr=3e-3, schedule="onecycle")
histories = {
    name: bz.train(network, train, recipe, val=held_out)
    for name, network in (("dense", dense), ("sketched", small))
}

figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
for name, history in histories.items():
    values = [epoch["val_accuracy"] for epoch in history.epochs]
    ax.plot(range(1, len(values) + 1), values, "o-", label=name)
    print(f"{name:9} {values[-1]:.1%}")
ax.set(xlabel="epoch", ylabel="accuracy on held-out digits")
ax.legend()

# %%
# What is stored are the cores. The random maps are a seed.

print({name: tuple(value.shape) for name, value in small.state_dict().items()})
