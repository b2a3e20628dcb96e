"""What tasks with scores of classes have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

from sentei.data import Data
from sentei.tasks.task import Task, pair_of


@dataclass(frozen=True)
class Scored(Task):
    """Base of the tasks whose batches are (images, labels), and whose models return a score for each class."""

    label_smoothing: float = 0.0
    temperature: float = 1.0
    """Softens both sides of the teacher's term."""

    percent = True

    def inputs(self, batch: Any) -> Any:
        return batch if isinstance(batch, Tensor) else pair_of(self, batch)[0]

    def guessing(self, data: Data) -> float | None:
        return math.log(max(data.num_classes or 2, 2))

    def with_settings(self, label_smoothing: float, temperature: float) -> Self:
        return replace(self, label_smoothing=label_smoothing, temperature=temperature)
