"""Contracts: what sketches, maps and methods have to keep, for the tests of who writes new ones."""

from bozzetto.testing.maps import check_map
from bozzetto.testing.methods import check_method
from bozzetto.testing.sketches import check_sketch

__all__ = ["check_map", "check_method", "check_sketch"]
