"""Tasks by name."""

from __future__ import annotations

from sentei.tasks.classification import Classification
from sentei.tasks.task import Task

TASKS: dict[str, Task] = {"classification": Classification()}


def task_of(given: str | Task | None, data: str | None = None) -> Task:
    return given if isinstance(given, Task) else TASKS[given or "classification"]
