"""Numbers that the forward pass computes from the running width."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.random_networks.blocks import WIDTHS, Block, Pick, block, conv


@block()
def scaled_by_width(pick: Pick, c: int, n: int) -> nn.Module:
    how = pick(("root", "mean", "inverse", "math", "tensor", "length", "size", "energy"))

    def forward(m: Block, x: Tensor) -> Tensor:
        k = x.shape[1]
        y = {
            "root": lambda: x / k**0.5,
            "mean": lambda: x - x.sum(1, keepdim=True) / k,
            "inverse": lambda: x * (1 / x.size(1)),
            "math": lambda: x * math.log2(k + 1),
            "tensor": lambda: x / torch.tensor(float(k), dtype=x.dtype).sqrt(),
            "length": lambda: x / len(x[0]),
            "size": lambda: x * (x.numel() / x[:, 0].numel()) ** -0.5,
            "energy": lambda: x * torch.rsqrt(x.pow(2).sum(1, keepdim=True) / k + 1),
        }[how]()
        return m.conv(y)

    return Block(forward, conv=conv(c, pick(WIDTHS)))


@block()
def correlation(pick: Pick, c: int, n: int) -> nn.Module:
    """The correlation of two maps at all positions, over the root of the width."""
    d, how = pick((4, 6, 10)), pick(("matmul", "einsum", "product"))

    def forward(m: Block, x: Tensor) -> Tensor:
        a, b = m.a(x), m.b(x)
        if how == "product":
            return m.out((a * b).sum(1, keepdim=True).div(a.shape[1]).expand(-1, 2, -1, -1))
        if how == "einsum":
            volume = torch.einsum("bcn,bcm->bnm", a.flatten(2), b.flatten(2))
        else:
            volume = a.flatten(2).transpose(1, 2) @ b.flatten(2)
        volume = volume / a.shape[1] ** 0.5
        return m.read(volume.view(x.shape[0], n * n, *x.shape[2:]).tanh())

    return Block(forward, a=conv(c, d), b=conv(c, d, 1), read=conv(n * n, 6, 1), out=conv(2, 6, 1), zero=("a", "b"))


@block()
def scaled_attention(pick: Pick, c: int, n: int) -> nn.Module:
    d, how = pick((4, 6)), pick(("power", "math", "softmax_free", "fused"))

    def forward(m: Block, x: Tensor) -> Tensor:
        q, k, v = (f(x).flatten(2).transpose(1, 2) for f in (m.q, m.k, m.v))
        if how == "fused":
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            scale = 1 / math.sqrt(q.shape[-1]) if how == "math" else q.size(-1) ** -0.5
            y = q @ k.transpose(1, 2) * scale
            y = (y / y.shape[-1] if how == "softmax_free" else y.softmax(-1)) @ v
        return m.out(y.transpose(1, 2).unflatten(2, x.shape[2:])) + x

    e = pick((4, 6))
    parts = {"q": conv(c, d, 1), "k": conv(c, d, 1), "v": conv(c, e, 1), "out": conv(e, c, 1)}
    return Block(forward, **parts, zero=("q", "k"))


@block(channels=2)
def half_of_width(pick: Pick, c: int, n: int) -> nn.Module:
    """A non-local block: it reshapes to half of the width that comes in."""
    how = pick(("reshape", "view", "channels_last", "conv1d"))

    def forward(m: Block, x: Tensor) -> Tensor:
        b, k, h, w = x.shape
        theta, phi, g = (f(x).flatten(2) for f in (m.theta, m.phi, m.g))
        y = torch.softmax(theta.transpose(1, 2) @ phi, -1) @ g.transpose(1, 2)
        if how == "channels_last":
            return x + m.out(y.reshape(b, h, w, k // 2).permute(0, 3, 1, 2))
        y = y.transpose(1, 2)
        if how == "conv1d":
            return x + m.out(y.contiguous().view(b, y.shape[1], h, w))
        y = y.reshape(b, k // 2, h, w) if how == "reshape" else y.contiguous().view(b, k // 2, *x.shape[2:])
        return x + m.out(y)

    half = c // 2
    parts = {"theta": conv(c, half, 1), "phi": conv(c, half, 1), "g": conv(c, half, 1), "out": conv(half, c, 1)}
    return Block(forward, **parts, zero=("theta", "phi"))


@block()
def evenly_grouped(pick: Pick, c: int, n: int) -> nn.Module:
    """Statistics over groups of channels, by hand (EvoNorm): the count of groups or the size of one is given."""
    out, how = pick((8, 12)), pick(("count", "size", "scalar"))

    def forward(m: Block, x: Tensor) -> Tensor:
        y = m.conv(x)
        b, k, h, w = y.shape
        parts = y.reshape(b, 4, k // 4, h, w) if how != "size" else y.reshape(b, -1, 4, h, w)
        std = parts.var((2, 3, 4), keepdim=True, unbiased=False).add(1e-5).sqrt()
        if how == "scalar":
            return (parts / std).reshape(b, k, h, w)
        return y * m.v.mul(y).sigmoid() / std.expand_as(parts).reshape(b, k, h, w)

    return Block(forward, conv=conv(c, out), v=nn.Parameter(torch.ones(1, out, 1, 1)))


@block()
def sized_tensors(pick: Pick, c: int, n: int) -> nn.Module:
    """Tensors that the forward makes in the size of an activation."""
    how = pick(("zeros", "ones", "full", "expand", "empty_fill", "eye", "buffer_cut"))

    def forward(m: Block, x: Tensor) -> Tensor:
        b, k, h, w = x.shape
        if how == "expand":
            return x + x.mean((1, 2, 3), keepdim=True).expand(b, k, h, w)
        if how == "eye":
            return torch.einsum("bchw,cd->bdhw", x, torch.eye(k, dtype=x.dtype))
        if how == "buffer_cut":
            return x + m.table[:k].view(1, -1, 1, 1)
        if how == "empty_fill":
            state = torch.empty_like(x).fill_(0.5)
        else:
            make = {"zeros": torch.zeros, "ones": torch.ones, "full": lambda *s, **kw: torch.full(s, 0.25, **kw)}[how]
            state = make(b, k, h, w, dtype=x.dtype)
        return torch.cat([x, state * m.gate(state)], 1)

    return Block(forward, gate=conv(c, c, 1), table=torch.randn(c))
