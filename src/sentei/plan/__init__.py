"""From a budget to a plan: which units of each group stay."""

from sentei.plan.allocate import allocate, note_on_use, note_on_widths, plan_from_widths, rescaler, uniform
from sentei.plan.budget import Budget
from sentei.plan.compose import compose
from sentei.plan.constraints import Constraints
from sentei.plan.criteria import CRITERIA, Criterion, criterion
from sentei.plan.exact import widths
from sentei.plan.plan import Plan

__all__ = [
    "CRITERIA",
    "Budget",
    "Constraints",
    "Criterion",
    "Plan",
    "allocate",
    "compose",
    "criterion",
    "note_on_use",
    "note_on_widths",
    "plan_from_widths",
    "rescaler",
    "uniform",
    "widths",
]
