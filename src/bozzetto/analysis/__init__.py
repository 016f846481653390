"""Analyses of a network and its smaller version: each a function and a frozen result."""
