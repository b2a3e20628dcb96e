"""What a network is for: classification, and whatever a user writes."""

from sentei.tasks.classification import Classification, distillation_loss
from sentei.tasks.registry import TASKS, task_of
from sentei.tasks.task import Task

__all__ = ["TASKS", "Classification", "Task", "distillation_loss", "task_of"]
