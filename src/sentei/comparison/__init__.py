"""Finished runs side by side, and methods at equal cost of training."""

from sentei.comparison.compare import compare

__all__ = ["compare"]
