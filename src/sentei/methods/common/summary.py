"""What a summary says about where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from sentei.answers import packed
from sentei.data import Split
from sentei.tasks import Task
from sentei.train import evaluate
from sentei.train.evaluate import Evaluation


def measured_task(task: Task) -> dict[str, Any]:
    """The task and the metric that decides, as a summary names them."""
    metric = {"name": task.metric, "lower_is_better": task.lower_is_better, "percent": task.percent}
    return {"task": task.name, "metric": metric}


def measured_on(model: nn.Module, split: Split, task: Task, memory_mb: int | None = None) -> Evaluation:
    """What a network measures on a split; nothing on an empty one."""
    if not len(split):
        return Evaluation({}, task.metric, 0)
    return evaluate(model, split, task=task, memory_mb=memory_mb)


def answers(**found: Evaluation) -> dict[str, str] | None:
    """Which samples each network answered right, as text; None where the task does not tell."""
    told = {name: packed(one.right) for name, one in found.items() if one.right is not None}
    return told if len(told) == len(found) else None


def tested(figures: Mapping[str, float], task: Task) -> dict[str, Any]:
    """The metric on test data under its name, and all other figures beside it."""
    others = {name: value for name, value in figures.items() if name != task.metric}
    return {task.metric: figures.get(task.metric), **({"test": others} if others else {})}
