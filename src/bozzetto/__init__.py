"""Bozzetto: design a smaller network that approximates a given one, and know what that costs."""
