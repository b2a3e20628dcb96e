"""Pruning methods, from a trained network to a smaller, checked and fine-tuned one."""

from sentei.methods.common.method import Found, Method
from sentei.methods.common.pruning import FINE_TUNE, Pruning
from sentei.methods.ista import Sparsifier
from sentei.methods.oneshot import OneShot
from sentei.methods.prune import PruneResult, prune
from sentei.methods.registry import METHODS
from sentei.methods.search_widths import search_widths
from sentei.methods.stagewise import Supernet

__all__ = [
    "FINE_TUNE", "METHODS", "Found", "Method", "OneShot", "PruneResult", "Pruning", "Sparsifier", "Supernet", "prune",
    "search_widths",
]  # fmt: skip
