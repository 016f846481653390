"""
Size against quality
====================

How small is too small? A sweep makes a network of several sizes from one calibration, and the
front shows what each of them keeps. Beside it stand networks whose layers were cut to the same
share of their values by plain singular value decomposition, as one would do by hand.
"""

import copy

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import bozzetto as bz
from bozzetto.analysis.front import front

digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)
batches = list(zip(x.split(64), y.split(64), strict=True))
train, held_out = batches[:23], batches[23:]

with torch.random.fork_rng():
    torch.default_generator.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )
bz.train(model, train, bz.Recipe(epochs=8, lr=3e-3))


# %%
# Calibration is collected once, by `collect`; `plan` and `rebuild` then make as many sizes as
# wanted. (`compress` does the same and also fits each layer to what the layers before it really
# give.)


def plain_svd(target: nn.Module, keep: float) -> nn.Module:
    """Each linear layer as two, by its singular value decomposition."""
    small = copy.deepcopy(target)
    for name, layer in list(small.named_children()):
        m, n = layer.weight.shape if isinstance(layer, nn.Linear) else (0, 0)
        if rank := int(keep * m * n / max(m + n, 1)):
            u, s, v = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
            first, second = nn.Linear(n, rank, bias=False), nn.Linear(rank, m)
            first.weight.data, second.weight.data = v[:rank], u[:, :rank] * s[:rank]
            second.bias.data = layer.bias.detach()
            setattr(small, name, nn.Sequential(first, second))
    return small


sizes = (0.5, 0.25, 0.125, 0.0625)
stats = bz.collect(model, train)
plans = {keep: bz.plan(model, stats, bz.Budget(params=keep)) for keep in sizes}
made = {keep: bz.rebuild(model, found, stats) for keep, found in plans.items()}
cut = {keep: plain_svd(model, keep) for keep in sizes}


def accuracy(network: nn.Module) -> float:
    return bz.evaluate(network, held_out, ["accuracy"])["accuracy"]


ours = front(
    model, {f"{k:g}": n for k, n in made.items()}, held_out, metrics={"accuracy": accuracy}
)
for row in ours.rows():
    print(
        f"{row['network']:8} {row['params_kept']:.3f} of the values, accuracy {row['accuracy']:.1%}"
    )

# %%

figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
ours.figure(ax)
ax.plot(
    sizes, [accuracy(network) for network in cut.values()], "s--", color="0.5", label="plain SVD"
)
ax.legend(loc="lower right")
