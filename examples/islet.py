"""
Regression on tensors
=====================

Each observation is a 20 × 20 image; the response is an inner product with unknown coefficients,
plus noise. There are 400 coefficients and only 300 observations, so least squares has no answer.
If the coefficients are a matrix of low rank, as those of a drawing with few strokes are, ISLET
finds them.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import RidgeCV

from bozzetto.regress import ISLETRegressor

rng = np.random.default_rng(0)
truth = np.zeros((20, 20))
truth[8:12, 3:17] = 1.0
truth[3:17, 8:12] = 1.0  # a cross: rank two
x = rng.standard_normal((300, 20, 20))
y = np.tensordot(x, truth, 2) + rng.standard_normal(300)

islet = ISLETRegressor(ranks="bic").fit(x, y)
ridge = RidgeCV(np.logspace(-2, 4, 13)).fit(x.reshape(300, -1), y)
found = {"truth": truth, "ISLET": islet.coef_, "ridge": ridge.coef_.reshape(20, 20)}
print("ranks", islet.ranks_)

# %%

figure, axes = plt.subplots(1, 3, figsize=(8, 3), layout="constrained")
for ax, (name, coefficients) in zip(axes, found.items(), strict=True):
    error = np.linalg.norm(coefficients - truth) / np.linalg.norm(truth)
    ax.imshow(coefficients, vmin=-1.2, vmax=1.2, cmap="RdBu")
    ax.set(title=f"{name}, relative error {error:.2f}" if name != "truth" else name)
    ax.set_axis_off()
    print(f"{name:6} relative error {error:.3f}")
