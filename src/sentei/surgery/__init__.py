"""Cut, slim, permute, prove, save and load."""

from sentei.surgery.check import CheckReport, check, reference, retrace
from sentei.surgery.cut import cut, permute
from sentei.surgery.files import load, load_plan, save
from sentei.surgery.fold import Folded, FoldReport, fold
from sentei.surgery.slim import slim

__all__ = [
    "CheckReport", "FoldReport", "Folded", "check", "cut", "fold", "load", "load_plan", "permute", "reference",
    "retrace", "save", "slim",
]  # fmt: skip
