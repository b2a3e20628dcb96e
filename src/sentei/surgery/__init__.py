"""Cut, slim, permute, fold, prove, save and load; optimizers that go on after a cut."""

from sentei.surgery.check import CheckReport, check, reference, retrace
from sentei.surgery.cut import cut, permute
from sentei.surgery.files import load, load_plan, save
from sentei.surgery.fold import Folded, FoldReport, fold
from sentei.surgery.optimizer import carry_optimizer, check_optimizer
from sentei.surgery.slim import slim

__all__ = [
    "CheckReport", "FoldReport", "Folded", "carry_optimizer", "check", "check_optimizer", "cut", "fold", "load",
    "load_plan", "permute", "reference", "retrace", "save", "slim",
]  # fmt: skip
