"""What a network is for: classification, segmentation, detection, and whatever a user writes."""

from sentei.tasks.classification import Classification, distillation_loss
from sentei.tasks.detection import Detection
from sentei.tasks.registry import TASKS, task_of
from sentei.tasks.segmentation import Segmentation
from sentei.tasks.task import Task

__all__ = ["TASKS", "Classification", "Detection", "Segmentation", "Task", "distillation_loss", "task_of"]
