"""Memory layout for training: channels_last is faster, but in one place PyTorch's CPU kernels crash in it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

VECTOR = 16
"""Floats that a CPU's widest vectors hold."""


def crashing(model: nn.Module) -> list[str]:
    """Names of the convolutions whose backward pass in channels_last may write past its buffers on a CPU.

    Tried in child processes with torch 2.14.1 (oneDNN 3.12), over kernels, strides, paddings, groups, widths, sizes and
    dtypes: the float32 weight gradient of an ungrouped 1x1 convolution with a stride does, if it has fewer inputs than
    a vector has floats: 2 to 7 with AVX2, 2 to 15 with AVX-512 (there on images of 56x56 and more). Forward passes,
    larger kernels, stride 1, grouped, transposed and 3d ones, float16, bfloat16 and float64 never did. It is enough
    that either the input or the weight is in channels_last.
    """
    return [
        name
        for name, m in model.named_modules()
        if isinstance(m, nn.Conv2d) and m.groups == 1 and set(m.kernel_size) == {1} and max(m.stride) > 1
        and m.weight.shape[1] < VECTOR
    ]  # fmt: skip


def training_layout(model: nn.Module, device: torch.device, channels_last: bool = True) -> torch.memory_format:
    """The layout to train `model` in: channels_last where it is wanted and safe."""
    safe = device.type != "cpu" or not crashing(model)
    return torch.channels_last if channels_last and safe else torch.contiguous_format


def arranged(x: Tensor, layout: torch.memory_format) -> Tensor:
    """A batch in that layout; anything but images stays as it is."""
    return x.contiguous(memory_format=layout) if x.ndim == 4 else x


def differentiable_layout(model: nn.Module, device: torch.device) -> tuple[nn.Module, torch.memory_format | None]:
    """The model, or a copy of it in the layout that its gradients need: the batches have to be in that one too.

    None leaves the batches as they are.
    """
    if device.type != "cpu" or not crashing(model):
        return model, None
    return copy.deepcopy(model).to(memory_format=torch.contiguous_format), torch.contiguous_format
