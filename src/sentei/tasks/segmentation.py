"""Semantic segmentation: cross-entropy a pixel, mean intersection over union, and a teacher's scores a pixel."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sentei.data import Data
from sentei.data.dataset import IGNORE
from sentei.distributed import total
from sentei.errors import TrainError
from sentei.tasks.classification import distillation_loss, logits
from sentei.tasks.scored import Scored
from sentei.tasks.task import Figures, called


@dataclass(frozen=True)
class Segmentation(Scored):
    """One class a pixel. Batches are (images N,C,H,W; masks int64 N,H,W), models return scores N,classes,h,w.

    >>> data = load_data("segmentation:camvid")
    >>> sentei.prune(model, data, task=Segmentation())

    Models may also return a mapping, "out" with "aux" as torchvision's do, or an object with `logits` as Hugging Face's
    do. Scores of another size than the mask's are resized to it, bilinearly (align_corners=False).
    """

    ignore: int = IGNORE
    """Mask value of pixels that are not counted."""
    aux_weight: float = 0.5
    """Weight of the loss of a model's second output, "aux", where it has one."""

    metric = "miou"
    shares = True

    @property
    def settings(self) -> dict[str, Any]:
        """Smoothing and temperature are those of the recipe, which tells them."""
        return {"name": self.name, "metric": self.metric, "ignore": self.ignore, "aux_weight": self.aux_weight}

    def loss(self, output: Any, batch: Any) -> Tensor:
        """Cross-entropy in nats, mean over the counted pixels; 0 where there are none."""
        mask = batch[1]
        scores = resized(logits(output), mask)
        if mask.device.type == "cpu":  # elsewhere it would wait for the device
            refuse_unknown(mask, scores.shape[1], self.ignore)
        loss = self._mean(scores, mask)
        aux = _auxiliary(output)
        return loss if aux is None else loss + self.aux_weight * self._mean(resized(aux, mask), mask)

    def _mean(self, scores: Tensor, mask: Tensor) -> Tensor:
        total = F.cross_entropy(
            scores, mask, ignore_index=self.ignore, label_smoothing=self.label_smoothing, reduction="sum"
        )
        return total / (mask != self.ignore).sum().clamp_min(1)

    def measure(self, model: nn.Module, batches: Iterable[Any]) -> Figures:
        """All over the counted pixels of all batches, at the masks' resolution.

        miou: intersection over union, mean over the classes that occur in masks or answers; pixel_accuracy; loss: mean
        cross-entropy in nats; majority and majority_miou: what answering the commonest class everywhere would reach.
        Not a number where no pixel is counted.
        """
        counted = _Counted(self.ignore)
        for batch in batches:
            counted.add(resized(logits(called(model, self.inputs(batch))), batch[1]), batch[1])
        return counted.figures()

    def imitate(self, output: Any, teacher: Any, batch: Any) -> Tensor:
        """Temperature^2 * KL(teacher || student), mean over all pixels of the scores, unlabelled ones included."""
        student = logits(output)
        target = resized(logits(teacher), student[:, 0])
        return distillation_loss(_by_pixel(student), _by_pixel(target), self.temperature)

    def needed(self, data: Data) -> int:
        """An image a class."""
        return data.num_classes or 2

    def doubt(self, figures: Mapping[str, float], count: int) -> str | None:
        """Neither figure better than answering the commonest class everywhere."""
        better = ("pixel_accuracy", "majority"), ("miou", "majority_miou")
        if any(figures[reached] > figures[guessed] for reached, guessed in better):
            return None
        return (
            f"before any cut the network is right on {figures['pixel_accuracy']:.2%} of the validation pixels, no "
            "better than always answering the commonest class: its weights are not trained, or not for these images "
            "(--normalize, the order of classes)"
        )


def resized(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores N,classes,h,w in float32 at the size of a mask N,H,W; TrainError for what cannot be brought to it."""
    if scores.ndim != 4 or mask.ndim != 3 or len(scores) != len(mask):
        raise TrainError(
            f"The model returned scores of shape {tuple(scores.shape)} for masks of shape {tuple(mask.shape)}; "
            f"expected ({len(mask)}, classes, height, width) for (N, height, width)."
        )
    if scores.shape[2:] == mask.shape[1:]:
        return scores.float()
    return F.interpolate(scores.float(), mask.shape[1:], mode="bilinear", align_corners=False)


def confusion(answers: Tensor, mask: Tensor, classes: int, ignore: int) -> Tensor:
    """Pixels by class in the mask (rows, the last one for ignored pixels) and in the answers (columns).

    >>> confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 255]), 2, 255).tolist()
    [[1, 1], [0, 0], [0, 1]]
    """
    rows = mask.masked_fill(mask == ignore, classes)
    both = (rows * classes + answers).flatten()
    return torch.bincount(both, minlength=(classes + 1) * classes).view(classes + 1, classes)


class _Counted:
    """Pixels counted over batches, on their device: it is not waited for before the end."""

    def __init__(self, ignore: int) -> None:
        self.ignore, self.table, self.loss, self.unknown = ignore, torch.zeros(1, 0), torch.zeros(()), torch.zeros(())

    def add(self, scores: Tensor, mask: Tensor) -> None:
        classes = scores.shape[1]
        unknown = strange(mask, classes, self.ignore)
        if not self.table.numel():
            refuse_unknown(mask, classes, self.ignore)
            self.table = torch.zeros(classes + 1, classes, dtype=torch.int64, device=mask.device)
            self.loss, self.unknown = torch.zeros((2,), dtype=torch.float64, device=mask.device)
        known = mask.masked_fill(unknown, self.ignore)
        self.table += confusion(scores.argmax(dim=1), known, classes, self.ignore)
        self.loss += F.cross_entropy(scores, known, ignore_index=self.ignore, reduction="sum")
        self.unknown += unknown.sum()

    def figures(self) -> Figures:
        if unknown := int(total(self.unknown)):
            raise TrainError(f"{unknown} pixels of the masks have a class that the model does not score.")
        table, loss = total(self.table)[:-1].double().cpu(), float(total(self.loss))
        right, labelled = table.diagonal(), table.sum(dim=1)
        union, pixels = labelled + table.sum(dim=0) - right, float(table.sum())
        if pixels == 0:
            return dict.fromkeys(("miou", "pixel_accuracy", "loss", "majority", "majority_miou"), math.nan)
        majority = float(labelled.max()) / pixels
        return {
            "miou": float((right[union > 0] / union[union > 0]).mean()),
            "pixel_accuracy": float(right.sum()) / pixels,
            "loss": loss / pixels,
            "majority": majority,
            "majority_miou": majority / int((labelled > 0).sum()),
        }


def strange(mask: Tensor, classes: int, ignore: int) -> Tensor:
    """Where a mask holds what is neither a class nor ignored."""
    return ((mask < 0) | (mask >= classes)) & (mask != ignore)


def refuse_unknown(mask: Tensor, classes: int, ignore: int) -> None:
    """TrainError for a mask with more classes than there are scores."""
    found = mask[strange(mask, classes, ignore)].unique().tolist()
    if found:
        raise TrainError(
            f"The model scores {classes} classes, but the masks hold {', '.join(map(str, found[:5]))}; {ignore} means "
            "not labelled. Build the model with the data's number of classes, or give the task another `ignore`."
        )


def _by_pixel(scores: Tensor) -> Tensor:
    return scores.movedim(1, -1).flatten(0, -2)


def _auxiliary(output: Any) -> Tensor | None:
    found = output.get("aux") if isinstance(output, dict) else getattr(output, "aux", None)
    return found if isinstance(found, Tensor) else None
