"""Channels in another order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.random_networks.blocks import WIDTHS, Block, Pick, block, conv


@block(channels=2)
def shuffle(pick: Pick, c: int, n: int) -> nn.Module:
    groups = pick([g for g in (2, 3, 4) if c % g == 0])

    def forward(m: Block, x: Tensor) -> Tensor:
        b, k, h, w = x.shape
        y = x.view(b, groups, k // groups, h, w).transpose(1, 2).reshape(b, -1, h, w)
        return m.conv(y)

    out = groups * pick((2, 3))
    body = conv(c, out, groups=pick((1, groups)))
    if pick((True, False)):
        return Block(forward, conv=body)
    return nn.Sequential(nn.ChannelShuffle(groups), body)


@block(channels=2)
def shuffle_unit(pick: Pick, c: int, n: int) -> nn.Module:
    def forward(m: Block, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        y = torch.cat([a, m.body(b)], 1)
        return y.view(y.shape[0], 2, y.shape[1] // 2, *y.shape[2:]).transpose(1, 2).contiguous().view_as(y)

    h = c // 2
    return Block(forward, body=nn.Sequential(conv(h, h, 1), nn.ReLU(), conv(h, h, groups=h), conv(h, h, 1)))


@block()
def reordered(pick: Pick, c: int, n: int) -> nn.Module:
    how = pick(("flip", "roll", "index", "repeat", "tile", "interleave", "index_select", "movedim"))
    order = torch.tensor([(5 * i + 2) % c for i in range(c)])

    def forward(m: Block, x: Tensor) -> Tensor:
        if how == "flip":
            return x + x.flip(1)
        if how == "roll":
            return x.roll(1, 1) * x
        if how == "index":
            return x[:, m.order]
        if how == "index_select":
            return x.index_select(1, m.order)
        if how == "movedim":
            return x.movedim(1, -1).flip(2).movedim(-1, 1)
        return x.repeat(1, 2, 1, 1) if how in ("repeat", "tile") else x.repeat_interleave(2, 1)

    more = 2 if how in ("repeat", "tile", "interleave") else 1
    return nn.Sequential(Block(forward, order=order), conv(more * c, 6, 1))


@block()
def pixel_shuffle(pick: Pick, c: int, n: int) -> nn.Module:
    up = nn.Sequential(conv(c, 4 * pick((3, 2)), pick((1, 3))), nn.PixelShuffle(2))
    return up if n <= 4 else nn.Sequential(up, nn.AvgPool2d(2))


@block(space=2)
def pixel_unshuffle(pick: Pick, c: int, n: int) -> nn.Module:
    return nn.Sequential(nn.PixelUnshuffle(2), conv(4 * c, pick(WIDTHS), pick((1, 3))))


@block(space=2)
def space_to_depth(pick: Pick, c: int, n: int) -> nn.Module:
    def forward(m: Block, x: Tensor) -> Tensor:
        return m.conv(torch.cat([x[:, :, ::2, ::2], x[:, :, 1::2, ::2], x[:, :, ::2, 1::2], x[:, :, 1::2, 1::2]], 1))

    return Block(forward, conv=conv(4 * c, pick(WIDTHS)))


@block()
def unfold(pick: Pick, c: int, n: int) -> nn.Module:
    out = pick(WIDTHS)

    def forward(m: Block, x: Tensor) -> Tensor:
        patches = F.unfold(x, 3, padding=1).transpose(1, 2)
        return m.linear(patches).transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])

    return Block(forward, linear=nn.Linear(9 * c, out))


@block()
def rolled(pick: Pick, c: int, n: int) -> nn.Module:
    width, by = pick((6, 8, 4, 5, 12)), pick((1, 2, -1, 3, "half"))
    join = pick(("add", "gate", "cat", "only"))

    def forward(m: Block, x: Tensor) -> Tensor:
        y = m.conv(x)
        z = y.roll(y.shape[1] // 2 if by == "half" else by, 1)
        if join == "cat":
            return torch.cat([y, z], 1)
        return z.relu() if join == "only" else y + z if join == "add" else y * z.sigmoid()

    return Block(forward, conv=conv(c, width))


@block()
def indexed(pick: Pick, c: int, n: int) -> nn.Module:
    """Channels picked by lists of numbers, constant or computed."""
    width = pick((6, 8, 4))
    how = pick(("list", "computed", "arange", "tensor", "even", "gather", "select", "mask", "perm"))

    def forward(m: Block, x: Tensor) -> Tensor:
        y = m.conv(x)
        k = y.shape[1]
        return {
            "list": lambda: y[:, [0, 2, 1]],
            "computed": lambda: y[:, list(range(0, k, 2))],
            "arange": lambda: y[:, torch.arange(k - 1, -1, -1)],
            "tensor": lambda: y[:, torch.tensor([i * 2 % k for i in range(k)])],
            "even": lambda: torch.cat([y[:, list(range(0, k, 2))], y[:, list(range(1, k, 2))]], 1),
            "gather": lambda: y.gather(1, torch.arange(k).flip(0).view(1, -1, 1, 1).expand_as(y)),
            "select": lambda: y.index_select(1, torch.tensor(range(k // 2))),
            "mask": lambda: y[:, torch.arange(k) % 2 == 0],
            "perm": lambda: y[:, torch.arange(k).view(2, -1).t().flatten()] if k % 2 == 0 else y,
        }[how]()

    return Block(forward, conv=conv(c, width))
