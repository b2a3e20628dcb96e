"""Pruning methods, from a trained network to a smaller, checked and fine-tuned one."""

from sentei.methods.oneshot import PruneResult, prune
from sentei.methods.settings import METHODS, Method

__all__ = ["METHODS", "Method", "PruneResult", "prune"]
