"""Low-rank tensor regression by importance sketching (ISLET), as scikit-learn estimators."""

from bozzetto.regress.designs import RankOne
from bozzetto.regress.multi import ISLETMultiRegressor
from bozzetto.regress.scalar import ISLETRegressor
from bozzetto.regress.shards import DaskShards
from bozzetto.regress.sparse import SparseISLETRegressor

__all__ = ["DaskShards", "ISLETMultiRegressor", "ISLETRegressor", "RankOne", "SparseISLETRegressor"]
