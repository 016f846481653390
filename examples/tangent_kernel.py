"""
The kernel of an architecture
=============================

A very wide network learns like kernel regression with its *tangent kernel*, which follows from
the architecture alone. Here it is computed for a network with a residual connection and tied
weights, compared with finite networks of growing width, and used to classify digits without
training any.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits

from bozzetto.tangent import Input, Matrix, Program, Realised, apply, empirical_ntk, relu
from bozzetto.tangent.blocks import dense, readout
from bozzetto.tangent.regressor import NTKClassifier

h = apply(relu, dense(Input(64, 1), variance=2.0, bias=0.1))
w = Matrix("W", variance=1.0)
for _ in range(2):  # the same matrix in both blocks
    h = h + apply(relu, w @ h)
program = Program(readout(h))

digits = load_digits()
x = torch.tensor(digits.data[:12] / 16)
limit = program.ntk(x)

# %%
# A finite network of the same program: the distance falls as one over the root of the width.

widths, draws = (64, 256, 1024), 6
errors = [
    [
        float((empirical_ntk(Realised(program, width, seed=s), x) - limit).norm() / limit.norm())
        for s in range(draws)
    ]
    for width in widths
]
figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
axes[0].imshow(limit.numpy())
axes[0].set(title="limiting tangent kernel", xlabel="digit", ylabel="digit")
axes[1].loglog(widths, np.mean(errors, 1), "o-", label="finite networks")
axes[1].loglog(
    widths, np.mean(errors[0]) * (np.array(widths) / widths[0]) ** -0.5, ":", label="width^-1/2"
)
axes[1].set(xlabel="width", ylabel="relative distance from the limit")
axes[1].legend()

# %%
# Kernel regression with the tangent kernel of a dense network of depth two.

data, labels = digits.data / 16, digits.target
classifier = NTKClassifier(depth=2).fit(data[:1000], labels[:1000])
print(f"accuracy on held-out digits: {classifier.score(data[1000:], labels[1000:]):.1%}")
