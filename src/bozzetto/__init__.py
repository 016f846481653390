"""Bozzetto: design a smaller network that approximates a given one, and know what that costs."""

from bozzetto import nn
from bozzetto.budget import Budget
from bozzetto.compress import compress
from bozzetto.expand import expand
from bozzetto.export import export
from bozzetto.io import load, save
from bozzetto.menu import plan
from bozzetto.plan import Plan
from bozzetto.rebuilding import rebuild
from bozzetto.sketching import sketch
from bozzetto.stats import Stats, collect
from bozzetto.train import Recipe, evaluate, train

__all__ = [
    "Budget",
    "Plan",
    "Recipe",
    "Stats",
    "collect",
    "compress",
    "evaluate",
    "expand",
    "export",
    "load",
    "nn",
    "plan",
    "rebuild",
    "save",
    "sketch",
    "train",
]
