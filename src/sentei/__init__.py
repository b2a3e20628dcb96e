"""sentei: make trained convolutional networks smaller by removing channels, and prove that the cut is correct."""

from sentei.comparison.compare import compare
from sentei.data import Data
from sentei.deploy.export import Exported, export
from sentei.errors import SenteiError
from sentei.graph import ChannelGraph, Cost, Group, Slice, trace
from sentei.methods import PruneResult, Sparsifier, Supernet, prune, search_widths
from sentei.plan import Budget, Constraints, Plan, allocate, compose, uniform, widths
from sentei.speed.latency import LatencyTable, Timing
from sentei.surgery import (
    carry_optimizer,
    check,
    check_optimizer,
    cut,
    fold,
    load,
    permute,
    retrace,
    save,
    slim,
)
from sentei.tasks import Task
from sentei.train import recalibrate

__all__ = [
    "Budget", "ChannelGraph", "Constraints", "Cost", "Data", "Exported", "Group", "LatencyTable", "Plan",
    "PruneResult", "SenteiError", "Slice", "Sparsifier", "Supernet", "Task", "Timing", "allocate", "carry_optimizer",
    "check", "check_optimizer", "compare", "compose", "cut", "export", "fold", "load", "permute", "prune",
    "recalibrate", "retrace", "save", "search_widths", "slim", "trace", "uniform", "widths",
]  # fmt: skip
