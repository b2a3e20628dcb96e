"""A network in three plain stages, small enough for the digits."""

from torch import Tensor, nn


class Three(nn.Module):
    """Three stages `a`, `b`, `c` of three convolutions each, at 8x8, 4x4 and 2x2 pixels."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.a = stage(in_channels, 8, 1)
        self.b = stage(8, 12, 2)
        self.c = stage(12, 16, 2)
        self.linear = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.c(self.b(self.a(x))).mean(dim=(2, 3)))


def stage(width: int, channels: int, stride: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(3):
        conv = nn.Conv2d(channels if i else width, channels, 3, 1 if i else stride, 1, bias=False)
        layers += [conv, nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers)
