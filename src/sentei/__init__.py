"""sentei: make trained convolutional networks smaller by removing channels, and prove that the cut is correct."""

from sentei.data import Data
from sentei.errors import SenteiError
from sentei.graph import ChannelGraph, Cost, Group, Slice, trace
from sentei.methods import PruneResult, prune
from sentei.plan import Budget, Constraints, Plan, compose, uniform
from sentei.surgery import check, cut, load, permute, retrace, save, slim
from sentei.tasks import Task

__all__ = [
    "Budget", "ChannelGraph", "Constraints", "Cost", "Data", "Group", "Plan", "PruneResult", "SenteiError", "Slice",
    "Task", "check", "compose", "cut", "load", "permute", "prune", "retrace", "save", "slim", "trace", "uniform",
]  # fmt: skip
