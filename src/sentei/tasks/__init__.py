"""What a network is for: classification, and whatever a user writes."""

from sentei.tasks.classification import Classification, distillation_loss
from sentei.tasks.task import Task

__all__ = ["Classification", "Task", "distillation_loss"]
