"""Networks for segmentation and detection on torchvision's MobileNetV2, for benchmarks/tasks.py and the command line.

`MOBILENET` in the environment names the ImageNet weights of torchvision.models.mobilenet_v2 that they start from.
"""

from __future__ import annotations

import os
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.models.segmentation.lraspp import LRASPP


class Features(nn.Module):
    """The layers of MobileNetV2, and what comes out of some of them, by name."""

    def __init__(self, taken: dict[int, str]) -> None:
        super().__init__()
        model = mobilenet_v2()
        if path := os.environ.get("MOBILENET"):
            model.load_state_dict(torch.load(path, weights_only=True))
        self.layers, self.taken = model.features[: max(taken) + 1], taken

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        out = OrderedDict()
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self.taken:
                out[self.taken[i]] = x
        return out


def lraspp(num_classes: int = 11) -> nn.Module:
    """LR-ASPP (Howard et al. 2019, arXiv 1905.02244) on the layers of MobileNetV2 up to stride 16, and on stride 4."""
    backbone = Features({3: "low", 13: "high"})
    return LRASPP(backbone, low_channels=24, high_channels=96, num_classes=num_classes, inter_channels=128)


class Extra(nn.Module):
    """MobileNetV2 at strides 16 and 32, and two further levels of half the size each."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Features({13: "0", 17: "1"})
        self.third, self.fourth = shrink(320, 128, 256), shrink(256, 64, 128)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        out = self.features(x)
        out["2"] = self.third(out["1"])
        out["3"] = self.fourth(out["2"])
        return out


def shrink(inputs: int, middle: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        *unit(inputs, middle, 1), *unit(middle, middle, 3, stride=2, groups=middle), *unit(middle, outputs, 1)
    )


def unit(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True)]


def ssdlite(num_classes: int = 4) -> nn.Module:
    """SSDlite (Sandler et al. 2018, arXiv 1801.04381) with four levels, for images of 224x224."""
    anchors = DefaultBoxGenerator([[2, 3] for _ in range(4)], min_ratio=0.15, max_ratio=0.9)
    head = SSDLiteHead([96, 320, 256, 128], anchors.num_anchors_per_location(), num_classes, nn.BatchNorm2d)
    return SSD(
        Extra(), anchors, (224, 224), num_classes, head=head, score_thresh=0.01, nms_thresh=0.5, detections_per_img=100,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
