"""sentei: make trained convolutional networks smaller by removing channels, and prove that the cut is correct."""

from sentei.errors import SenteiError
from sentei.graph import ChannelGraph, Cost, Group, Slice, trace
from sentei.methods import PruneResult, Supernet, prune
from sentei.plan import Budget, Constraints, Plan, compose, uniform
from sentei.surgery import check, cut, load, permute, retrace, save, slim

__all__ = [
    "Budget", "ChannelGraph", "Constraints", "Cost", "Group", "Plan", "PruneResult", "SenteiError", "Slice", "Supernet",
    "check", "compose", "cut", "load", "permute", "prune", "retrace", "save", "slim", "trace", "uniform",
]  # fmt: skip
