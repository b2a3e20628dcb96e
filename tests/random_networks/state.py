"""Modules that remember: caches, counters, features of the last call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.random_networks.blocks import WIDTHS, Block, Pick, block, conv


@block()
def cached(pick: Pick, c: int, n: int) -> nn.Module:
    kind = pick((list, dict, "attribute", "tensor"))

    def forward(m: Block, x: Tensor) -> Tensor:
        if kind == "tensor":
            return m.conv(x) + m.plain.to(x)
        held = m.grid if kind == "attribute" else m.grid[0]
        if held is None or held.shape[-1] != x.shape[-1]:
            axis = torch.arange(x.shape[-1], dtype=x.dtype, device=x.device)
            held = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).sum(0)
            if kind == "attribute":
                m.grid = held
            else:
                m.grid[0] = held
        return m.conv(x + held * 0.1)

    grid = [None] if kind is list else {0: None} if kind is dict else None
    made = Block(forward, conv=conv(c, pick(WIDTHS)), grid=grid)
    made.__dict__["plain"] = torch.ones(n, n, dtype=torch.float64)  # a tensor that is no buffer
    return made


@block()
def counted(pick: Pick, c: int, n: int) -> nn.Module:
    """Counts its calls, keeps a history, updates a buffer and an average in place."""

    def forward(m: Block, x: Tensor) -> Tensor:
        m.calls += 1
        m.shapes.append(tuple(x.shape))
        m.seen += 1
        m.mean.mul_(0.9).add_(x.detach().mean((0, 2, 3)), alpha=0.1)
        return m.conv(x) if m.calls < 10**6 else x

    parts = {"seen": torch.zeros((), dtype=torch.long), "mean": torch.zeros(c)}
    return Block(forward, conv=conv(c, pick(WIDTHS)), calls=0, shapes=[], **parts)


@block()
def memory(pick: Pick, c: int, n: int) -> nn.Module:
    """Keeps the features of the last call, and may mix them in."""
    mixes = pick((True, False))

    def forward(m: Block, x: Tensor) -> Tensor:
        y = torch.relu(m.conv(x))
        last, m.last = m.last, y.detach()
        m.bank["features"] = y.detach()
        return y if not mixes or last is None or last.shape != y.shape else (y + last) / 2

    return Block(forward, conv=conv(c, pick(WIDTHS)), last=None, bank={})
