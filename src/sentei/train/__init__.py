"""Recipe, training loop, checkpoints, evaluation and BatchNorm recalibration."""

from sentei.train.evaluate import Evaluation, evaluate
from sentei.train.loop import FitResult, fit
from sentei.train.recalibrate import recalibrate
from sentei.train.recipe import Recipe

__all__ = ["Evaluation", "FitResult", "Recipe", "evaluate", "fit", "recalibrate"]
