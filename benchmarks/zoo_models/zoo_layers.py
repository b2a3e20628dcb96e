"""What the networks of the zoo share."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

Build = Callable[[], nn.Module]


def takes(*shape: int) -> Callable[[Build], Build]:
    """Note the shape of one input on the function that builds a network."""

    def noted(build: Build) -> Build:
        build.input_shape = shape  # type: ignore[attr-defined]
        return build

    return noted


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), act()
    )
