"""Convolutions of all kinds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.random_networks.blocks import WIDTHS, Block, Pick, block, conv, conv_act


@block()
def plain(pick: Pick, c: int, n: int) -> nn.Module:
    return conv_act(pick, c, pick(WIDTHS), pick((1, 2)) if n > 2 else 1)


@block()
def depthwise(pick: Pick, c: int, n: int) -> nn.Module:
    out = c * pick((1, 2))
    return nn.Sequential(
        conv(c, out, groups=c, bias=pick((False, True))), nn.BatchNorm2d(out), nn.ReLU(), conv(out, 8, 1)
    )


@block(channels=2)
def grouped(pick: Pick, c: int, n: int) -> nn.Module:
    groups = pick([g for g in (2, 3, 4, c // 2) if c % g == 0])
    out = groups * pick((2, 3, 4))
    return nn.Sequential(conv(c, out, groups=groups, bias=pick((False, True))), nn.BatchNorm2d(out), nn.ReLU())


@block()
def transposed(pick: Pick, c: int, n: int) -> nn.Module:
    stride = pick((1, 2)) if n <= 4 else 1
    groups = pick([g for g in (1, 2, c) if c % g == 0])
    out = groups * pick((1, 2, 3)) if groups > 1 else pick(WIDTHS)
    return nn.ConvTranspose2d(c, out, 2 + stride, stride, 1, groups=groups, bias=pick((True, False)))


@block()
def shared(pick: Pick, c: int, n: int) -> nn.Module:
    return Block(lambda m, x: m.conv(m.act(m.conv(x))), conv=conv(c, c), act=nn.ReLU())


@block()
def tied(pick: Pick, c: int, n: int) -> nn.Module:
    out = c if pick((True, False)) else 6
    a, b = conv(c, out), conv(c, out)
    b.weight = a.weight
    if out == c and pick((True, False)):
        return nn.Sequential(a, nn.ReLU(), b)
    return Block(lambda m, x: m.a(x) * torch.sigmoid(m.b(F.relu(x))), a=a, b=b)


@block()
def standardised(pick: Pick, c: int, n: int) -> nn.Module:
    def forward(m: Block, x: Tensor) -> Tensor:
        w = m.conv.weight
        mean, std = w.mean((1, 2, 3), keepdim=True), w.std((1, 2, 3), keepdim=True, unbiased=False)
        return F.conv2d(x, (w - mean) / (std + 1e-5), m.conv.bias, padding=1)

    return Block(forward, conv=conv(c, pick(WIDTHS)))


@block()
def computed_weight(pick: Pick, c: int, n: int) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(conv(c, pick(WIDTHS)))
