"""Pruning methods, from a trained network to a smaller, checked and fine-tuned one."""

from sentei.methods.oneshot import METHODS, Method, PruneResult, prune

__all__ = ["METHODS", "Method", "PruneResult", "prune"]
