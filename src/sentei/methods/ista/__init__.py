"""ISTA on BatchNorm scales (Ye et al. 2018)."""

from sentei.methods.ista.groups import shrinking
from sentei.methods.ista.ista import Ista
from sentei.methods.ista.sparsifier import Sparsifier

__all__ = ["Ista", "Sparsifier", "shrinking"]
