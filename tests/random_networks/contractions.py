"""Matrix products and attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.random_networks.blocks import WIDTHS, Block, Pick, block, conv


@block()
def einsum(pick: Pick, c: int, n: int) -> nn.Module:
    out = pick(WIDTHS)
    return Block(
        lambda m, x: torch.einsum("bchw,dc->bdhw", x, m.weight),
        weight=nn.Parameter(torch.randn(out, c)),
        reads=("weight.1",),
    )


@block()
def channel_attention(pick: Pick, c: int, n: int) -> nn.Module:
    d = pick((4, 6))

    def forward(m: Block, x: Tensor) -> Tensor:
        q, k, v = (f(x).flatten(2) for f in (m.q, m.k, m.v))
        y = torch.softmax(q @ k.transpose(1, 2) / 8, -1) @ v
        return m.out(y.view(x.shape[0], -1, *x.shape[2:]))

    parts = {"q": conv(c, d, 1), "k": conv(c, d, 1), "v": conv(c, d, 1), "out": conv(d, c, 1)}
    return Block(forward, **parts, zero=("q", "k"))


@block()
def spatial_attention(pick: Pick, c: int, n: int) -> nn.Module:
    d, heads, joint = pick((4, 6)), pick((1, 2)), pick((False, True))

    def forward(m: Block, x: Tensor) -> Tensor:
        t = x.flatten(2).transpose(1, 2)
        b, length, _ = t.shape
        if joint:
            q, k, v = m.qkv(t).reshape(b, length, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (y.view(b, length, heads, -1).transpose(1, 2) for y in m.qkv(t).chunk(3, -1))
        y = torch.softmax(q @ k.transpose(-2, -1) * 0.5, -1) @ v
        return m.out(y.transpose(1, 2).reshape(b, length, -1)).transpose(1, 2).reshape(x.shape) + x

    return Block(forward, qkv=nn.Linear(c, 3 * heads * d), out=nn.Linear(heads * d, c), zero=("qkv",))


@block(channels=2)
def multihead(pick: Pick, c: int, n: int) -> nn.Module:
    def forward(m: Block, x: Tensor) -> Tensor:
        t = x.flatten(2).transpose(1, 2)
        return m.attention(t, t, t, need_weights=False)[0].transpose(1, 2).reshape(x.shape)

    return Block(forward, attention=nn.MultiheadAttention(c, 2, batch_first=True))


@block()
def mixer(pick: Pick, c: int, n: int) -> nn.Module:
    """Linear layers over channels last, and over positions."""
    h = pick((6, 10))

    def forward(m: Block, x: Tensor) -> Tensor:
        t = m.channels(x.flatten(2).transpose(1, 2)).transpose(1, 2)
        return (m.space(t) + t).unflatten(2, x.shape[2:])

    return Block(
        forward, channels=nn.Sequential(nn.Linear(c, h), nn.GELU(), nn.Linear(h, c)), space=nn.Linear(n * n, n * n)
    )
