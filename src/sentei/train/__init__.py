"""Data, recipe, training loop, checkpoints, distillation and BatchNorm recalibration."""

from sentei.train.data import Data, load_data
from sentei.train.distill import distillation_loss
from sentei.train.evaluate import Evaluation, evaluate
from sentei.train.loop import FitResult, fit
from sentei.train.recalibrate import recalibrate
from sentei.train.recipe import Recipe
from sentei.train.splits import Augment

__all__ = [
    "Augment",
    "Data",
    "Evaluation",
    "FitResult",
    "Recipe",
    "distillation_loss",
    "evaluate",
    "fit",
    "load_data",
    "recalibrate",
]
