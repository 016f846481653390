"""
Optimisers that mix points
==========================

A mix of the last few points of an optimiser may be better than the last one. `Interpolatron`
mixes with fixed weights, `Anderson` with those that would make the steps cancel. On a badly
conditioned least-squares problem, with whole gradients, the difference is large; with noisy
gradients and a falling learning rate it is small or none, see the page on training.
"""

import matplotlib.pyplot as plt
import torch
from torch.optim import SGD

from bozzetto.linalg import random_normal
from bozzetto.optim import Anderson, Interpolatron

n, steps = 50, 300
eigenvalues = torch.logspace(-3, 0, n, dtype=torch.float64)
start = random_normal(0, n)


def run(make) -> list[float]:
    """Losses ½ Σ λᵢ xᵢ² after every step."""
    x = start.clone().requires_grad_()
    optimiser, losses = make([x]), []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = 0.5 * (eigenvalues * x.square()).sum()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


# %%
# Each at a rate near the largest that it bears: mixing two points with weights 2/3 and 1/3
# doubles it.

ways = {
    "gradient descent": lambda p: SGD(p, lr=1.9),
    "Interpolatron, two points": lambda p: Interpolatron(SGD(p, lr=3.9), history=2, every=1),
    "momentum 0.9": lambda p: SGD(p, lr=1.9, momentum=0.9),
    "Anderson, ten points": lambda p: Anderson(SGD(p, lr=1.0), history=10, every=1),
}
figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
for name, make in ways.items():
    losses = run(make)
    ax.semilogy(losses, label=name)
    print(f"{name:26} loss {losses[-1]:.1e}")
ax.set(xlabel="step", ylabel="loss")
ax.legend()
