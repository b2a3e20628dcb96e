"""The part of torchvision's detectors that can be traced: backbone, neck and heads.

What comes before it (resizing) has no parameters, and what comes after it (sorting boxes, suppressing some) decides by
values. Both go on as they were around a part that was cut.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard, cast

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from sentei.errors import ConfigError

DETECTION = "torchvision.models.detection"
"""Takes two seconds to import, and no detector has been built where nobody has imported it."""
KNOWN = "Faster R-CNN, Mask R-CNN, Keypoint R-CNN, RetinaNet, FCOS, SSD and SSDlite of torchvision"


def is_detector(model: nn.Module) -> TypeGuard[Any]:
    """Whether `detector_part` knows the parts of a model."""
    detection = sys.modules.get(DETECTION)
    return detection is not None and (isinstance(model, detection.FasterRCNN) or is_dense_detector(model))


def is_dense_detector(model: nn.Module) -> bool:
    """Whether a detector's head runs over whole feature maps: RetinaNet, FCOS and SSD; SSDlite is an SSD."""
    detection = sys.modules.get(DETECTION)
    return detection is not None and isinstance(model, (detection.RetinaNet, detection.FCOS, detection.ssd.SSD))


def detector_part(model: nn.Module, images: Tensor | Sequence[Tensor]) -> dict[str, Any]:
    """What the backbone, the neck and the heads of a detector of torchvision make of images: raw outputs by name.

    >>> detector = torchvision.models.detection.fasterrcnn_resnet50_fpn()
    >>> graph = sentei.trace(detector, torch.zeros(1, 3, 800, 800), forward=detector_part)
    >>> small = sentei.cut(detector, graph, sentei.uniform(graph, sentei.Budget(macs=0.5)))
    >>> small([image])                                      # a whole detector

    Args:
        model: a Faster R-CNN, Mask R-CNN, Keypoint R-CNN, RetinaNet, FCOS, SSD or SSDlite.
        images: N,3,H,W, of the size that the detector itself would make of them; or a list of 3,H,W, which the
            detector's own transform makes a batch of.

    Where boxes are looked at one by one, which of them depends on values. Instead each feature map is pooled as a
    whole, and the heads run on as many boxes as they see at most in eval mode, so that costs are those of the detector.
    With values a single box stands for all of an image, as they would all be the same. Raises ConfigError for any
    other model.
    """
    if not is_detector(model):
        raise ConfigError(
            f"no part of a {type(model).__name__} is known that can be traced; known are {KNOWN}. For others a Task "
            "with a `forward` of its own, or trace(model, inputs, forward=...), runs the part"
        )
    batch = images if isinstance(images, Tensor) else model.transform(list(images))[0].tensors
    found = model.backbone(batch)
    features: dict[str, Tensor] = {"0": found} if isinstance(found, Tensor) else dict(found)
    if is_dense_detector(model):
        return dict(model.head(list(features.values())))
    objectness, shifts = model.rpn.head(list(features.values()))
    return {"objectness": objectness, "proposals": shifts, **_of_boxes(model, features, objectness)}


def _of_boxes(model: Any, features: Mapping[str, Tensor], objectness: Iterable[Tensor]) -> dict[str, Any]:
    """What the heads that look at single boxes make of the features."""
    heads = model.roi_heads
    pooled = _pooled(features, heads.box_roi_pool, _proposals(model, objectness))
    out = {"boxes": heads.box_predictor(heads.box_head(pooled))}
    for name in ("mask", "keypoint"):
        pool, head, predictor = (getattr(heads, f"{name}_{kind}") for kind in ("roi_pool", "head", "predictor"))
        if pool is not None:
            out[name] = predictor(head(_pooled(features, pool, heads.detections_per_img)))
    return out


def _proposals(model: Any, objectness: Iterable[Tensor]) -> int:
    """The most boxes of an image that are classified in eval mode."""
    anchors = sum(min(model.rpn._pre_nms_top_n["testing"], t[0].numel()) for t in objectness)
    return int(min(model.rpn._post_nms_top_n["testing"], anchors))


def _pooled(features: Mapping[str, Tensor], pool: Any, boxes: int) -> Tensor:
    """The features of an image in the size of a box, boxes times over: all levels that boxes may be taken from."""
    levels = [f for name, f in features.items() if name in getattr(pool, "featmap_names", features)]
    first, *others = (adaptive_avg_pool2d(f, cast(tuple[int, int], pool.output_size)) for f in levels)
    whole = sum(others, first)
    return whole[:, None].expand(-1, boxes, -1, -1, -1).flatten(0, 1) if whole.is_meta else whole
