"""ISTA on BatchNorm scales (Ye et al. 2018)."""

from sentei.methods.ista.ista import Ista, shrinking

__all__ = ["Ista", "shrinking"]
