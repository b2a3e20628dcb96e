"""What random networks are drawn from: a register of blocks, and a module that any function can be the forward of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Pick = Callable[[Sequence[Any]], Any]
Maker = Callable[[Pick, int, int], nn.Module]
WIDTHS = (4, 6, 8, 12)
BLOCKS: dict[str, tuple[Maker, int, int]] = {}


class Block(nn.Module):
    """A module whose forward is a function of itself and its inputs; children, parameters and buffers by keyword."""

    def __init__(self, fn: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.fn = fn
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Any:
        return self.fn(self, *inputs)


def block(channels: int = 1, space: int = 1) -> Callable[[Maker], Maker]:
    """Register a block that needs `channels` to divide its input's channels and `space` its height and width."""

    def register(maker: Maker) -> Maker:
        BLOCKS[maker.__name__] = (maker, channels, space)
        return maker

    return register


def conv(c: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(c, out, kernel, stride, kernel // 2, groups=groups, bias=bias)


ACTIVATIONS = (nn.ReLU(), nn.ReLU(inplace=True), nn.SiLU(), nn.Hardswish(inplace=True), nn.GELU(), nn.ELU(inplace=True),
               nn.LeakyReLU(0.1, inplace=True), nn.ReLU6(inplace=True), nn.Softplus(), nn.Mish(), nn.Hardsigmoid(),
               nn.Tanh(), nn.SELU(), nn.Hardtanh(-2, 2), nn.Softsign(), nn.CELU(), nn.LogSigmoid(), nn.Tanhshrink(),
               nn.Threshold(0.1, 0.2), nn.Hardshrink(0.1), nn.Dropout(), nn.Dropout2d(), nn.Identity())  # fmt: skip


def conv_act(pick: Pick, c: int, out: int, stride: int = 1) -> nn.Sequential:
    kernel, norm = pick((3, 1)), pick((True, False))
    tail = [nn.BatchNorm2d(out)] if norm else []
    return nn.Sequential(conv(c, out, kernel, stride, bias=not norm), *tail, pick(ACTIVATIONS))


def sequence(pick: Pick, c: int, n: int, length: int) -> tuple[nn.Sequential, int, int]:
    """Some blocks in a row; also returns the channels and size that come out."""
    layers: list[nn.Module] = []
    for _ in range(length):
        fitting = [k for k, (_, channels, space) in BLOCKS.items() if c % channels == 0 and n % space == 0]
        name = pick(fitting)
        layer = BLOCKS[name][0](pick, c, n).double()
        layers.append(layer)
        c, n = _out(layer, c, n)
    return nn.Sequential(*layers), c, n


def _out(layer: nn.Module, c: int, n: int) -> tuple[int, int]:
    with torch.no_grad():  # a copy, so that no model has run before it is traced
        shape = copy.deepcopy(layer).eval()(torch.zeros(1, c, n, n, dtype=torch.float64)).shape
    return shape[1], shape[2]


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, biases and statistics that hide nothing: no zeros, no ones, activations of order one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, p in module._parameters.items():
                if p is None:
                    continue
                if p.ndim > 1 and p.shape[0] > 1 and p[0].numel() > 1:
                    fan = max(p[0].numel(), 2)
                    p.normal_(0, fan**-0.5, generator=generator)
                elif "bias" in name:
                    p.normal_(0, 0.1, generator=generator)
                else:
                    p.uniform_(0.5, 1.5, generator=generator)
            for name, b in module._buffers.items():
                if b is not None and name == "running_mean":
                    b.normal_(0, 0.1, generator=generator)
                elif b is not None and name == "running_var":
                    b.uniform_(0.5, 1.5, generator=generator)
    return model
