"""Object detection with torchvision's detectors: their own losses, mean average precision."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from sentei.data import Data
from sentei.distributed import every
from sentei.errors import ConfigError, TrainError
from sentei.tasks.detectors import detector_part
from sentei.tasks.task import Figures, Task, called

BACKENDS = {"pycocotools": "pycocotools", "faster_coco_eval": "faster_coco_eval"}
"""Modules that torchmetrics can compute with, by what it calls them."""
INSTALL = 'pip install "torchmetrics[detection]>=1.4"'
NOTHING = 0.01
"""A mean average precision below which a detector finds nothing."""


@dataclass(frozen=True)
class Detection(Task):
    """Boxes with a class each. Batches are (list of images 3,H,W in 0..1; list of {"boxes": N,4, "labels": N}).

    >>> data = load_data("coco:cells")
    >>> model = torchvision.models.detection.fasterrcnn_resnet50_fpn(num_classes=data.num_classes + 1)
    >>> sentei.prune(model, data, task=Detection())

    Models are called as torchvision's detectors are: in training with (images, targets) for a dict of losses, which are
    summed; otherwise with the images for a list of {"boxes", "scores", "labels"}. Boxes are x1, y1, x2, y2 in pixels,
    labels count from 1, as 0 is the background. There is nothing to distil from.

    Figures need torchmetrics with pycocotools or faster-coco-eval: ``pip install "sentei[detection]"``.
    """

    metric = "map50"
    shares = True
    percent = True

    def inputs(self, batch: Any) -> tuple[list[Tensor]]:
        """The list of images, as the only argument."""
        return (list(batch[0]),)

    def loss(self, output: Any, batch: Any) -> Tensor:
        raise TrainError("a detector returns its own losses, so there is none of its output: use step(model, batch)")

    def step(self, model: nn.Module, batch: Any) -> Tensor:
        """Sum of the model's losses. In evaluation mode too, where normalisation layers keep their statistics."""
        with returning_losses(model):
            losses = model(list(batch[0]), list(batch[1]))
        if not isinstance(losses, Mapping) or not all(isinstance(v, Tensor) for v in losses.values()) or not losses:
            raise TrainError(
                f"the model returned a {type(losses).__name__} for images and targets in training; expected a dict of "
                "losses, as torchvision's detectors return it"
            )
        return torch.stack([loss.sum() for loss in losses.values()]).sum()

    def measure(self, model: nn.Module, batches: Iterable[Any]) -> Figures:
        """map50: mean average precision at an overlap of 0.5; map: its mean over 0.5, 0.55 to 0.95, as COCO counts.

        0 where there are boxes and none is found; not a number where there is no box to be found.
        """
        precision, answers, targets = _metric(), [], []
        for batch in batches:
            found, wanted = called(model, self.inputs(batch)), batch[1]
            _refuse_other(found, len(wanted))
            answers += _plain(found, "boxes", "scores", "labels")
            targets += _plain(wanted, "boxes", "labels")
        answers, targets = every(answers), every(targets)
        if not any(len(target["boxes"]) for target in targets):
            return {"map50": math.nan, "map": math.nan}
        precision.update(answers, targets)
        figures = precision.compute()
        return {"map50": max(float(figures["map_50"]), 0.0), "map": max(float(figures["map"]), 0.0)}

    def forward(self, model: nn.Module, *inputs: Any, **named: Any) -> Any:
        """Backbone, neck and heads; see `sentei.tasks.detectors.detector_part`."""
        return detector_part(model, *inputs, **named)

    def count(self, batch: Any) -> int:
        return len(batch[0])

    def classes(self, data: Data) -> int | None:
        """One more than the data have, for the background."""
        return None if data.num_classes is None else data.num_classes + 1

    def doubt(self, figures: Mapping[str, float], count: int) -> str | None:
        """Next to nothing is found."""
        if figures["map50"] > NOTHING:
            return None
        return (
            f"before any cut the network reaches a mean average precision of {figures['map50']:.2%}: its weights are "
            "not trained, or not for these images (the order of classes, 0 being the background)"
        )

    def with_settings(self, label_smoothing: float, temperature: float) -> Self:
        require_metrics()
        return super().with_settings(label_smoothing, temperature)

    def example(self, model: nn.Module, data: Data) -> Any:
        """One black image of the size that the model's own transform makes of the first training image."""
        if data.example is not None:
            return data.example
        images, _ = next(iter(data.train.batches(1, limit=1)))
        black = torch.zeros_like(images[0])
        transform = getattr(model, "transform", None)
        if not isinstance(transform, nn.Module):
            return black[None]
        with _switched([transform], training=False):
            return transform([black])[0].tensors


@contextmanager
def returning_losses(model: nn.Module) -> Iterator[None]:
    """A detector that returns losses whatever its mode; its layers keep theirs, and so its statistics."""
    whole = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    parts = [whole, *(getattr(whole, name, None) for name in ("rpn", "roi_heads"))]
    with _switched([part for part in parts if isinstance(part, nn.Module)], training=True):
        yield


@contextmanager
def _switched(modules: list[nn.Module], training: bool) -> Iterator[None]:
    """Other modes for these modules alone, not for those inside them."""
    before = [module.training for module in modules]
    for module in modules:
        module.training = training
    try:
        yield
    finally:
        for module, mode in zip(modules, before, strict=True):
            module.training = mode


def require_metrics() -> str:
    """The backend to compute with; ConfigError with what to type where torchmetrics or every backend is missing."""
    backend = next((name for name, module in BACKENDS.items() if importlib.util.find_spec(module)), None)
    if backend is None or importlib.util.find_spec("torchmetrics") is None:
        raise ConfigError(
            f"task detection measures with torchmetrics and pycocotools or faster-coco-eval. Install them:  {INSTALL}"
        )
    return backend


def _metric() -> Any:
    backend = require_metrics()
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(box_format="xyxy", iou_type="bbox", backend=backend)  # type: ignore[arg-type]
    metric.warn_on_many_detections = False  # the best 100 of an image count, as in COCO's own figures
    return metric


def _plain(values: Iterable[Mapping[str, Tensor]], *names: str) -> list[dict[str, Tensor]]:
    return [{name: value[name].detach().cpu() for name in names} for value in values]


def _refuse_other(found: Any, count: int) -> None:
    wanted = {"boxes", "scores", "labels"}
    each = isinstance(found, list) and all(isinstance(value, Mapping) and wanted <= value.keys() for value in found)
    if each and len(found) == count:
        return
    raise TrainError(
        f"the model returned a {type(found).__name__} for {count} images; expected a list with a dict of boxes, scores "
        "and labels for each, as torchvision's detectors return it"
    )
