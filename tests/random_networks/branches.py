"""Branches and how they join."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.random_networks.blocks import WIDTHS, Block, Pick, block, conv, conv_act, sequence


@block()
def residual(pick: Pick, c: int, n: int) -> nn.Module:
    inner = pick(WIDTHS)
    body = nn.Sequential(conv_act(pick, c, inner), conv(inner, c, bias=False), nn.BatchNorm2d(c))
    return Block(lambda m, x: F.relu(m.body(x) + x), body=body)


@block()
def residual_projection(pick: Pick, c: int, n: int) -> nn.Module:
    out, stride = pick(WIDTHS), pick((1, 2)) if n > 2 else 1
    body = nn.Sequential(conv_act(pick, c, out, stride), conv(out, out), nn.BatchNorm2d(out))
    return Block(lambda m, x: F.relu(m.body(x).add_(m.short(x))), body=body, short=conv(c, out, 1, stride))


@block(space=2)
def residual_zero_pad(pick: Pick, c: int, n: int) -> nn.Module:
    out = c + pick((4, 2, 3))
    pad = ((out - c) // 2, out - c - (out - c) // 2)
    body = nn.Sequential(conv(c, out, 3, 2), nn.BatchNorm2d(out), nn.ReLU(), conv(out, out))
    if pick((True, False)):
        return Block(lambda m, x: m.body(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, *pad)), body=body)

    def forward(m: Block, x: Tensor) -> Tensor:
        y = m.body(x)
        more = y.shape[1] - x.shape[1]
        return y + torch.cat([x[:, :, ::2, ::2], x.new_zeros(x.shape[0], more, *y.shape[2:])], 1)

    return Block(forward, body=body)


@block()
def dense(pick: Pick, c: int, n: int) -> nn.Module:
    return Block(lambda m, x: torch.cat([x, m.body(x)], 1), body=conv_act(pick, c, pick((3, 4))))


@block()
def branches(pick: Pick, c: int, n: int) -> nn.Module:
    pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(c, 3, 1))
    parts = nn.ModuleList([conv(c, pick((3, 4, 5)), 1), conv_act(pick, c, pick((4, 6))), pool])
    return Block(lambda m, x: torch.cat([part(x) for part in m.parts], 1), parts=parts)


@block()
def maximum(pick: Pick, c: int, n: int) -> nn.Module:
    out, fn = pick(WIDTHS), pick((torch.maximum, torch.minimum, torch.max, torch.mul, torch.sub))
    return Block(lambda m, x: fn(m.a(x), m.b(x)), a=conv(c, out), b=conv(c, out, 1))


@block()
def stacked(pick: Pick, c: int, n: int) -> nn.Module:
    out, how = pick(WIDTHS), pick(("sum", "interleave", "select", "unbind", "max"))

    def forward(m: Block, x: Tensor) -> Tensor:
        y = torch.stack([m.a(x), m.b(x)], 2 if how == "interleave" else 1)
        if how == "interleave":
            return y.flatten(1, 2)
        if how == "unbind":
            a, b = y.unbind(1)
            return a - 2 * b
        if how == "max":
            return y.max(1).values
        return y.sum(1) if how == "sum" else y[:, 1]

    return Block(forward, a=conv(c, out), b=conv(c, out, 1))


@block()
def selective(pick: Pick, c: int, n: int) -> nn.Module:
    """Selective kernels: softmax over branches, one weight per channel."""
    out = pick(WIDTHS)

    def forward(m: Block, x: Tensor) -> Tensor:
        both = torch.stack([m.a(x), m.b(x)], 1)
        gate = m.gate(both.sum(1).mean((2, 3), keepdim=True))
        gate = torch.softmax(gate.view(x.shape[0], 2, out, 1, 1) if pick_fixed else
                             gate.view(x.shape[0], 2, -1, 1, 1), 1)  # fmt: skip
        return (both * gate).sum(1)

    pick_fixed = pick((False, True))
    return Block(forward, a=conv(c, out), b=conv(c, out, 1), gate=conv(out, 2 * out, 1))


@block()
def nested(pick: Pick, c: int, n: int) -> nn.Module:
    body, out, size = sequence(pick, c, n, pick((1, 2)))
    if size != n:
        return body
    return Block(lambda m, x: m.project(m.body(x)) + x, body=body, project=conv(out, c, 1))
