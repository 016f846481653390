"""Kernel regression with limiting kernels on real small data, against linear models and RBF.

python benchmarks/run.py tangent-regression
"""

from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR

from bozzetto.tangent.regressor import NTKClassifier, NTKRegressor

DATA = {
    "digits": (load_digits, 500),
    "breast cancer": (load_breast_cancer, 280),
    "wine": (load_wine, 90),
    "diabetes": (load_diabetes, 330),
}
GRID = {"C": [0.1, 1, 10, 100], "gamma": ["scale", 0.01, 0.1]}
SPLITS = 5


def _models(name: str) -> dict[str, Any]:
    if name == "diabetes":
        linear, rbf = RidgeCV(np.logspace(-4, 2, 13)), GridSearchCV(SVR(), GRID)
        kinds = {k: NTKRegressor(kernel=k) for k in ("ntk", "nngp")}
    else:
        linear, rbf = LogisticRegression(max_iter=3000), GridSearchCV(SVC(), GRID)
        kinds = {k: NTKClassifier(kernel=k) for k in ("ntk", "nngp")}
    return kinds | {"linear": linear, "rbf": rbf}


def regression() -> dict[str, Any]:
    """Accuracy, or R² for diabetes, on what is held out: mean and deviation over splits."""
    rows = []
    for name, (load, train) in DATA.items():
        x, y = load(return_X_y=True)
        row: dict[str, Any] = {"data": name, "train": train, "test": len(y) - train}
        for kind, model in _models(name).items():
            found = []
            for seed in range(SPLITS):
                split = train_test_split(x, y, train_size=train, random_state=seed)
                fitted = make_pipeline(StandardScaler(), model).fit(split[0], split[2])
                found.append(fitted.score(split[1], split[3]))
            row[kind] = round(float(np.mean(found)), 4)
            row[f"{kind} deviation"] = round(float(np.std(found, ddof=1)), 4)
        rows.append(row)
    return {"rows": rows, "splits": SPLITS}


BENCHMARKS = {"tangent-regression": regression}
