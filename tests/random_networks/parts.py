"""Parts of channels: splits, chunks, slices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.random_networks.blocks import Block, Pick, block, conv


@block()
def split_equal(pick: Pick, c: int, n: int) -> nn.Module:
    h, join = pick((4, 3)), pick(("cat", "add", "swap"))

    def forward(m: Block, x: Tensor) -> Tensor:
        a, b = torch.split(m.conv(x), [h, h], 1) if pick_list else torch.split(m.conv(x), h, 1)
        if join == "add":
            return m.a(a) + b
        return torch.cat([b, m.a(a)] if join == "swap" else [m.a(a), b], 1)

    pick_list = pick((True, False))
    return Block(forward, conv=conv(c, 2 * h), a=conv(h, h, 1))


@block()
def split_unequal(pick: Pick, c: int, n: int) -> nn.Module:
    a, b = pick(((6, 2), (3, 5), (2, 8)))

    def forward(m: Block, x: Tensor) -> Tensor:
        first, second = m.conv(x).split([a, b], 1)
        return torch.cat([m.first(first), m.second(second)], 1)

    return Block(forward, conv=conv(c, a + b), first=conv(a, 4), second=conv(b, 4, 1))


@block()
def chunk_two(pick: Pick, c: int, n: int) -> nn.Module:
    h, how = pick((4, 3, 6)), pick(("gate", "cat", "only"))

    def forward(m: Block, x: Tensor) -> Tensor:
        a, b = m.conv(x).chunk(2, 1)
        if how == "gate":
            return a * b.sigmoid()
        return a if how == "only" else torch.cat([m.body(b), a], 1)

    return Block(forward, conv=conv(c, 2 * h), body=conv(h, h))


@block()
def chunk_many(pick: Pick, c: int, n: int) -> nn.Module:
    k, h = pick((3, 4)), pick((2, 3, 4))

    def forward(m: Block, x: Tensor) -> Tensor:
        parts, out = m.conv(x).chunk(k, 1), []
        for part in parts:
            out.append(m.body(part + out[-1]) if out else part)
        return torch.cat(out, 1)

    return Block(forward, conv=conv(c, k * h), body=conv(h, h))


@block()
def slices(pick: Pick, c: int, n: int) -> nn.Module:
    h, how = pick((4, 3)), pick(("computed", "fixed", "strided", "tail", "uneven", "negative"))

    def forward(m: Block, x: Tensor) -> Tensor:
        y = m.conv(x)
        if how == "computed":
            return y[:, : y.shape[1] // 2] * y[:, y.shape[1] // 2 :].tanh()
        if how == "fixed":
            return torch.cat([m.body(y[:, :h]), y[:, h:]], 1)
        if how == "strided":
            return y[:, ::2] + y[:, 1::2]
        if how == "negative":
            return m.body(y[:, -h:])
        return y[:, h:] if how == "tail" else torch.cat([y[:, :1], y[:, 2:]], 1)

    return Block(forward, conv=conv(c, 2 * h), body=conv(h, h))


@block()
def written_slices(pick: Pick, c: int, n: int) -> nn.Module:
    h, how = pick((4, 3)), pick(("zeros_like", "new_zeros", "add_", "same"))

    def forward(m: Block, x: Tensor) -> Tensor:
        y = m.conv(x)
        if how == "add_":
            y[:, :h].add_(m.part(x))
            return y
        if how == "same":
            y[:, :h] = m.part(x)
            return y
        new = torch.zeros_like(y) if how == "zeros_like" else y.new_zeros(y.shape[0], 2 * h, *y.shape[2:])
        new[:, :h] = m.part(x)
        new[:, h:] = y[:, :h]
        return new

    return Block(forward, conv=conv(c, 2 * h), part=conv(c, h))


@block()
def gated(pick: Pick, c: int, n: int) -> nn.Module:
    return nn.Sequential(conv(c, 2 * pick((4, 3)), pick((1, 3))), nn.GLU(1))


@block()
def glu_chain(pick: Pick, c: int, n: int) -> nn.Module:
    a, b, d = pick((4, 3)), pick((4, 6)), pick((3, 5))
    by_hand = pick((False, True))

    def forward(m: Block, x: Tensor) -> Tensor:
        for layer in (m.first, m.second, m.third):
            x = layer(x)
            half = x.shape[1] // 2
            x = x[:, :half] * x[:, half:].sigmoid() if by_hand else F.glu(x, 1)
        return x

    return Block(forward, first=conv(c, 2 * a), second=conv(a, 2 * b, 1), third=conv(b, 2 * d))


@block()
def uneven_parts(pick: Pick, c: int, n: int) -> nn.Module:
    """Pieces of a width that the number of pieces need not divide."""
    width, k = pick((7, 8, 12, 5)), pick((2, 3))
    how, join = pick(("tensor_split", "chunk", "split", "indices", "hsplit")), pick(("cat", "first", "swap", "fold"))

    def forward(m: Block, x: Tensor) -> Tensor:
        y = m.conv(x)
        w = y.shape[1]
        parts = {
            "tensor_split": lambda: y.tensor_split(k, 1),
            "chunk": lambda: y.chunk(k, 1),
            "split": lambda: y.split(w // k, 1),
            "indices": lambda: torch.tensor_split(y, (w // 3, 2 * w // 3), 1),
            "hsplit": lambda: torch.hsplit(y, (w // 2,)),
        }[how]()
        if join == "first":
            return parts[0].relu()
        if join == "fold":
            out = parts[0]
            for part in parts[1:]:
                least = min(out.shape[1], part.shape[1])
                out = out[:, :least] + part[:, :least]
            return out
        return torch.cat([p.relu() for p in (parts if join == "cat" else parts[::-1])], 1)

    return Block(forward, conv=conv(c, width))


@block()
def copied_slices(pick: Pick, c: int, n: int) -> nn.Module:
    """Slices written onto slices: shifts over time and channels."""
    width, how = pick((6, 8, 4, 9)), pick(("onto", "shift", "other", "eighth", "single", "fold"))

    def forward(m: Block, x: Tensor) -> Tensor:
        y = m.conv(x)
        z, k = m.other(x), y.shape[1]
        new = torch.zeros_like(y) if how in ("shift", "fold") else y.clone()
        if how == "onto":
            new[:, : k // 2] = y[:, k - k // 2 :]
        elif how == "shift":
            new[:, 1:] = y[:, :-1]
        elif how == "other":
            new[:, 2:4] = z[:, :2]
        elif how == "eighth":
            new[:, : k // 4] = z[:, k // 4 : 2 * (k // 4)]
        elif how == "single":
            new[:, 0] = z[:, -1]
        else:
            fold = k // 4
            new[:-1, :fold] = y[1:, :fold]
            new[1:, fold : 2 * fold] = y[:-1, fold : 2 * fold]
            new[:, 2 * fold :] = y[:, 2 * fold :]
        return new

    return Block(forward, conv=conv(c, width), other=conv(c, width, 1))
