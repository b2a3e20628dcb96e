"""What is exported of torchvision's detectors, and how that is measured inside them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from sentei.errors import ExportError
from sentei.graph.part import Forward
from sentei.tasks.detectors import is_dense_detector, is_detector


def refuse_boxes(model: nn.Module, forward: Forward | None) -> None:
    """ExportError for a detector of which more is asked than can be a file, with what can be."""
    if not is_detector(model) or (forward is not None and is_dense_detector(model)):
        return
    name = type(model).__name__
    if forward is None and is_dense_detector(model):
        raise ExportError(
            f"a whole {name} cannot be exported: which boxes it returns depends on values. task='detection' exports "
            "its backbone and heads"
        )
    raise ExportError(
        f"the heads of a {name} look at one box after the other, chosen by values, which no format here can hold. Its "
        "backbone can be exported: sentei.export(model.backbone, images, path)"
    )


def why_not_inside(model: nn.Module, image_free: bool) -> str:
    """Why a file cannot be measured inside the detector whose part it is; empty if it can."""
    if not is_dense_detector(model):
        return "a part of the network is exported, and only the whole can be measured"
    if not image_free and getattr(model.transform, "fixed_size", None) is None:
        return "this detector makes images of several sizes, the file takes one (image='dynamic' takes all)"
    return ""


class Inside(nn.Module):
    """A detector whose raw outputs are those of a file. Resizing and boxes are its own.

    Its backbone still runs, for the sizes of its features, from which anchors follow.
    """

    def __init__(self, detector: Any, shipped: nn.Module) -> None:
        super().__init__()
        self.detector = copy.deepcopy(detector).to(next(shipped.parameters()).device)
        self.detector.backbone = _Noting(self.detector.backbone)
        self.detector.head = _Answering(self.detector.backbone, shipped)

    def forward(self, images: Sequence[Tensor]) -> Any:
        return self.detector(images)


class _Noting(nn.Module):
    """A backbone that remembers its images."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.images = backbone, list[Tensor]()

    def forward(self, images: Tensor) -> Any:
        self.images[:] = [images]
        return self.backbone(images)


class _Answering(nn.Module):
    """Heads that answer with what a file makes of the images."""

    def __init__(self, noting: _Noting, shipped: nn.Module) -> None:
        super().__init__()
        self.seen, self.shipped = noting.images, shipped

    def forward(self, features: Any) -> Any:
        return self.shipped(*self.seen)
