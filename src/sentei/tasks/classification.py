"""Image classification: cross-entropy, accuracy, and a teacher's softened scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sentei.data import Data
from sentei.distributed import every, total
from sentei.errors import TrainError
from sentei.tasks.scored import Scored
from sentei.tasks.task import RIGHT, called

PER_CLASS = 5
"""Validation images a class, below which accuracies say nothing."""


@dataclass(frozen=True)
class Classification(Scored):
    """One class an image. Batches are (images N,C,H,W; labels int64 N), models return scores N,classes.

    >>> sentei.prune(model, data, task=Classification())  # doctest: +SKIP
    """

    metric = "accuracy"
    shares = True

    @property
    def settings(self) -> dict[str, Any]:
        """Smoothing and temperature are those of the recipe, which tells them."""
        return {"name": self.name, "metric": self.metric}

    def loss(self, output: Any, batch: Any) -> Tensor:
        scores = logits(output)
        check_logits(scores, batch[1], whole=scores.device.type == "cpu")
        return F.cross_entropy(scores.float(), batch[1], label_smoothing=self.label_smoothing)

    def measure(self, model: nn.Module, batches: Iterable[Any]) -> Mapping[str, Any]:
        """accuracy; loss, the mean cross-entropy in nats; majority, what answering the commonest class would reach;
        right, bool N, which images get their class."""
        right: list[Tensor] = []
        labels, loss = torch.zeros(0), torch.zeros((), dtype=torch.float64)
        for x, y in batches:
            scores = logits(called(model, x)).float()
            if not labels.numel():
                check_logits(scores, y, whole=True)
                loss = loss.to(y.device)
                labels = torch.zeros(scores.shape[1], dtype=torch.int64, device=y.device)
            right.append(scores.argmax(dim=1) == y)
            loss += F.cross_entropy(scores, y, reduction="sum")
            labels += y.bincount(minlength=len(labels))
        loss, labels, answers = total(loss), total(labels), torch.cat(every([torch.cat(right).cpu()]))
        count, most = int(labels.sum()), int(labels.max())
        figures = {"accuracy": int(answers.sum()) / count, "loss": float(loss) / count, "majority": most / count}
        return {**figures, RIGHT: answers}

    def imitate(self, output: Any, teacher: Any, batch: Any) -> Tensor:
        return distillation_loss(logits(output), logits(teacher), self.temperature)

    def needed(self, data: Data) -> int:
        return PER_CLASS * (data.num_classes or 2)

    def doubt(self, figures: Mapping[str, float], count: int) -> str | None:
        """An accuracy no better than answering the most frequent class, by two standard errors."""
        guess = figures["majority"]
        if figures["accuracy"] > guess + 2 * math.sqrt(guess * (1 - guess) / count):
            return None
        return (
            f"before any cut the network is right on {figures['accuracy']:.2%} of the validation images, no better "
            "than guessing: its weights are not trained, or not for these images (--normalize, the order of classes)"
        )


def logits(output: Any) -> Tensor:
    """The scores a model returned: a tensor, a tuple led by it, or a mapping (``logits``, ``out``)."""
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "out"):
        found = output.get(name) if isinstance(output, dict) else getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    raise TrainError(f"The model returned a {type(output).__name__}; expected class scores as a tensor N,classes.")


def check_logits(scores: Tensor, labels: Tensor, whole: bool = False) -> None:
    """Refuse scores that cannot be compared with the labels; `whole` looks at the labels too, which waits for them."""
    if scores.ndim != 2 or len(scores) != len(labels):
        raise TrainError(
            f"The model returned scores of shape {tuple(scores.shape)}; classification, the task unless another one is "
            f"given (task=, --task), expects ({len(labels)}, classes)."
        )
    if whole and int(labels.max()) >= scores.shape[1]:
        raise TrainError(
            f"The model scores {scores.shape[1]} classes, but the data has labels up to {int(labels.max())}. "
            "Build the model with the data's number of classes."
        )


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over the batch.

    The factor T^2 keeps the gradient's size independent of T (Hinton, Vinyals and Dean 2015,
    arXiv 1503.02531, section 2). Both arguments are logits of shape (N, classes).

    >>> logits = torch.tensor([[2.0, -1.0]])
    >>> distillation_loss(logits, logits, 4.0).item()
    0.0
    """
    soft_student = F.log_softmax(student.float() / temperature, dim=1)
    soft_teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    return F.kl_div(soft_student, soft_teacher, reduction="batchmean", log_target=True) * temperature**2
