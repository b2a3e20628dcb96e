"""Networks without branches: VGG-16, the ConvNet of Ye et al. 2018, and a small one for the digits."""

import torch.nn.functional as F
from torch import Tensor, nn

from sentei.models.initial import he_init

VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
"""Widths of the 13 convolutions; 0 is a max pool."""


class VGG(nn.Module):
    """VGG-16 for 32x32 images: 13 convolutions with bias, BatchNorm and ReLU, one linear layer.

    Simonyan and Zisserman 2015 (arXiv 1409.1556, configuration D), in the CIFAR form that pruning papers use.

    >>> VGG()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = in_channels
        for wider in VGG16:
            if wider == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(width, wider, 3, padding=1), nn.BatchNorm2d(wider), nn.ReLU(inplace=True)]
            width = wider
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean(dim=(2, 3)))


class ConvNet(nn.Module):
    """The plain ConvNet of "Rethinking the Smaller-Norm-Less-Informative Assumption" (Ye et al., ICLR 2018).

    Four hidden convolutions of 96, 192, 192 and 384 channels; the last one covers the whole 4x4 map. The
    scores come from a 1x1 convolution with BatchNorm. Images must be 32x32.

    >>> ConvNet()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 96, 5, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(96)
        self.conv2 = nn.Conv2d(96, 192, 5, padding=2, bias=False)
        self.bn2 = nn.BatchNorm2d(192)
        self.conv3 = nn.Conv2d(192, 192, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(192)
        self.conv4 = nn.Conv2d(192, 384, 4, bias=False)
        self.bn4 = nn.BatchNorm2d(384)
        self.conv5 = nn.Conv2d(384, num_classes, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(num_classes)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        x = self.pool(F.relu(self.bn2(self.conv2(x))))
        x = self.pool(F.relu(self.bn3(self.conv3(x))))
        x = F.relu(self.bn4(self.conv4(x)))
        return self.bn5(self.conv5(x)).flatten(1)


class DigitsNet(nn.Module):
    """A few convolutions with one residual, sized for scikit-learn's 8x8 digits: learnt in seconds on a CPU.

    >>> DigitsNet()(torch.zeros(1, 1, 8, 8)).shape
    torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(32)
        self.conv4 = nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False)
        self.bn4 = nn.BatchNorm2d(64)
        self.linear = nn.Linear(64, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(y)) + x)
        x = F.relu(self.bn4(self.conv4(x)))
        return self.linear(x.mean(dim=(2, 3)))
