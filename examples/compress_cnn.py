"""
Compress a CNN
==============

A convolutional network is trained on handwritten digits and made four times smaller, without
another look at the labels. Then it is tuned for two passes, with the large network as its
teacher.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import bozzetto as bz

digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
labels = torch.tensor(digits.target)
batches = list(zip(images.split(64), labels.split(64), strict=True))
train, held_out = batches[:23], batches[23:]

# %%
# The network to be made smaller.

with torch.random.fork_rng():
    torch.default_generator.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 32, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
bz.train(model, train, bz.Recipe(epochs=6, lr=3e-3))

# %%
# A quarter of its values: `compress` measures on unlabelled images what each layer is given and
# what the output feels of it, chooses how every layer is written, and fits the layers one by one.

small, plan = bz.compress(model, 0.25, [x for x, _ in train])
print(small)

# %%
# What it costs, before and after tuning.

recipe = bz.Recipe(epochs=2, lr=1e-3, distillation=0.5)
accuracy = {
    "target": bz.evaluate(model, held_out, ["accuracy"])["accuracy"],
    "a quarter": bz.evaluate(small, held_out, ["accuracy"])["accuracy"],
}
bz.train(small, train, recipe, teacher=model)
accuracy["tuned"] = bz.evaluate(small, held_out, ["accuracy"])["accuracy"]
for name, value in accuracy.items():
    print(f"{name:10} {value:.1%}")
print(f"kept {plan.kept():.1%} of the values, {plan.kept('flops'):.1%} of the operations")

# %%
# The plan: how many values each layer was left with.

figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
plan.figure(ax)
