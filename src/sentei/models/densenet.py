"""DenseNet-40 with growth 12 (Huang et al. 2017, arXiv 1608.06993, section 4.2, without bottlenecks)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sentei.models.initial import he_init


class DenseLayer(nn.Module):
    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.bn(x)))], dim=1)


class Transition(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class DenseNet(nn.Module):
    """Three dense blocks of 12 layers; the transitions between them do not compress.

    >>> DenseNet()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, layers: int = 12, growth: int = 12) -> None:
        super().__init__()
        width = 2 * growth
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        for stage in range(3):
            stages.append(nn.Sequential(*(DenseLayer(width + i * growth, growth) for i in range(layers))))
            width += layers * growth
            if stage < 2:
                stages.append(Transition(width))
        self.dense1, self.trans1, self.dense2, self.trans2, self.dense3 = stages
        self.bn = nn.BatchNorm2d(width)
        self.linear = nn.Linear(width, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trans1(self.dense1(self.conv1(x)))
        x = self.dense3(self.trans2(self.dense2(x)))
        return self.linear(F.relu(self.bn(x)).mean(dim=(2, 3)))
