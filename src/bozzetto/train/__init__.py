"""Training: one loop, from labels or a teacher, that resumes to the same weights bit for bit."""

from bozzetto.train.augment import Augmented
from bozzetto.train.checkpoint import CheckpointMismatch
from bozzetto.train.history import Diverged, History, Progress
from bozzetto.train.loop import train
from bozzetto.train.metrics import METRICS, evaluate
from bozzetto.train.optimizers import OPTIMIZERS
from bozzetto.train.processes import whole_state
from bozzetto.train.recipe import Recipe
from bozzetto.train.schedule import SCHEDULES

__all__ = [
    "METRICS",
    "OPTIMIZERS",
    "SCHEDULES",
    "Augmented",
    "CheckpointMismatch",
    "Diverged",
    "History",
    "Progress",
    "Recipe",
    "evaluate",
    "train",
    "whole_state",
]
