"""GoogLeNet for 32x32 images: nine Inception modules (Szegedy et al. 2015, arXiv 1409.4842)."""

import torch
from torch import Tensor, nn

from sentei.models.initial import he_init

MODULES = {
    "a3": (192, 64, 96, 128, 16, 32, 32),
    "b3": (256, 128, 128, 192, 32, 96, 64),
    "a4": (480, 192, 96, 208, 16, 48, 64),
    "b4": (512, 160, 112, 224, 24, 64, 64),
    "c4": (512, 128, 128, 256, 24, 64, 64),
    "d4": (512, 112, 144, 288, 32, 64, 64),
    "e4": (528, 256, 160, 320, 32, 128, 128),
    "a5": (832, 256, 160, 320, 32, 128, 128),
    "b5": (832, 384, 192, 384, 48, 128, 128),
}
"""Input, 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5 and pool channels of each module."""


def conv_bn(in_channels: int, channels: int, kernel: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


class Inception(nn.Module):
    """Four branches, concatenated; the 5x5 branch is two 3x3 convolutions."""

    def __init__(self, width: int, n1: int, red3: int, n3: int, red5: int, n5: int, pool: int) -> None:
        super().__init__()
        self.branch1 = nn.Sequential(*conv_bn(width, n1, 1))
        self.branch3 = nn.Sequential(*conv_bn(width, red3, 1), *conv_bn(red3, n3, 3))
        self.branch5 = nn.Sequential(*conv_bn(width, red5, 1), *conv_bn(red5, n5, 3), *conv_bn(n5, n5, 3))
        self.branch_pool = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), *conv_bn(width, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch3(x), self.branch5(x), self.branch_pool(x)], dim=1)


class GoogLeNet(nn.Module):
    """GoogLeNet in the CIFAR form of pruning papers: a 3x3 stem, pools after b3 and e4, no auxiliary heads.

    >>> GoogLeNet()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(in_channels, 192, 3))
        for name, widths in MODULES.items():
            self.add_module(name, Inception(*widths))
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.linear = nn.Linear(1024, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for name in MODULES:
            x = self.get_submodule(name)(x)
            if name in ("b3", "e4"):
                x = self.pool(x)
        return self.linear(x.mean(dim=(2, 3)))
