"""Accuracy and loss of a classifier on a split."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sentei.errors import DataError, TrainError
from sentei.train.splits import Split


@dataclass(frozen=True)
class Evaluation:
    accuracy: float
    """Share of images whose highest logit is the label, 0 to 1."""
    loss: float
    """Mean cross entropy in nats."""
    images: int
    majority: float = 0.0
    """Share of the most frequent label: what answering it always would reach."""


def evaluate(
    model: nn.Module, split: Split, *, batch_size: int = 500, bf16: bool = False, limit: int | None = None
) -> Evaluation:
    """Measure a classifier; the model keeps its modes, weights and statistics.

    >>> evaluate(model, data.test).accuracy  # doctest: +SKIP
    0.9173

    The model must already be where the split's images are. ``limit`` measures only so many, evenly spaced.
    """
    if len(split) == 0:
        raise DataError("Cannot evaluate on an empty split. Load the data with a validation split (val above 0).")
    correct, loss, images = torch.zeros(()), torch.zeros((), dtype=torch.float64), 0
    labels: list[Tensor] = []
    with evaluating(model), torch.inference_mode():
        for x, y in split.batches(batch_size, limit=limit):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
                scores = logits(model(x)).float()
            if images == 0:
                check_logits(scores, y)
                correct, loss = correct.to(x.device), loss.to(x.device)
            correct += (scores.argmax(dim=1) == y).sum()
            loss += F.cross_entropy(scores, y, reduction="sum")
            images += len(y)
            labels.append(y)
    most = int(torch.cat(labels).bincount().max())
    return Evaluation(float(correct) / images, float(loss) / images, images, most / images)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode and afterwards back into the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def logits(output: Any) -> Tensor:
    """The class scores a model returned: a tensor, a tuple led by it, or a mapping (``logits``, ``out``)."""
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "out"):
        found = output.get(name) if isinstance(output, dict) else getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    raise TrainError(f"The model returned a {type(output).__name__}; expected class scores as a tensor N,classes.")


def classification_loss(output: Any, labels: Tensor) -> Tensor:
    """Mean cross entropy of what a model returned."""
    return F.cross_entropy(logits(output), labels)


def check_logits(scores: Tensor, labels: Tensor) -> None:
    """Refuse scores that cannot be compared with the labels, before any work is lost."""
    if scores.ndim != 2 or len(scores) != len(labels):
        raise TrainError(
            f"The model returned scores of shape {tuple(scores.shape)}; expected ({len(labels)}, classes)."
        )
    if int(labels.max()) >= scores.shape[1]:
        raise TrainError(
            f"The model scores {scores.shape[1]} classes, but the data has labels up to {int(labels.max())}. "
            "Build the model with the data's number of classes."
        )
