"""Widths, split sizes and head counts that modules keep as plain attributes, some of them never read."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.random_networks.blocks import WIDTHS, Block, Pick, block, conv


@block()
def kept_split_sizes(pick: Pick, c: int, n: int) -> nn.Module:
    a, b = pick(((4, 4), (8, 4), (3, 5), (6, 6)))
    kind, depthwise = pick((list, tuple, dict, int)), pick((True, False))
    if kind is int:
        a = b
    sizes = {"a": a, "b": b} if kind is dict else a if kind is int else kind((a, b))

    def forward(m: Block, x: Tensor) -> Tensor:
        sizes = list(m.sizes.values()) if isinstance(m.sizes, dict) else m.sizes
        first, second = torch.split(m.conv(x), sizes, 1)
        return torch.cat([m.first(first), m.second(second)], 1)

    first, second = (conv(k, k, groups=k if depthwise else 1) for k in (a, b))
    return Block(forward, conv=conv(c, a + b), first=first, second=second, sizes=sizes)


@block()
def kept_slice(pick: Pick, c: int, n: int) -> nn.Module:
    """A partial convolution: only the first `dim` channels are convolved."""
    width, dim, how = pick((8, 12)), pick((2, 4)), pick(("cat", "write", "rest"))

    def forward(m: Block, x: Tensor) -> Tensor:
        y = m.conv(x)
        if how == "write":
            y = y.clone()
            y[:, : m.dim] = m.part(y[:, : m.dim])
            return y
        if how == "rest":
            a, b = torch.split(y, [m.dim, m.rest], 1)
            return torch.cat([m.part(a), b], 1)
        return torch.cat([m.part(y[:, : m.dim]), y[:, m.dim :]], 1)

    return Block(forward, conv=conv(c, width), part=conv(dim, dim), dim=dim, rest=width - dim)


@block()
def kept_shape(pick: Pick, c: int, n: int) -> nn.Module:
    width, kind, how = pick(WIDTHS), pick((tuple, list, dict, int)), pick(("view", "unflatten", "expand", "linear"))
    shape = {"width": width} if kind is dict else width if kind is int else kind((width, 1, 1))

    def forward(m: Block, x: Tensor) -> Tensor:
        k = m.shape["width"] if isinstance(m.shape, dict) else m.shape if isinstance(m.shape, int) else m.shape[0]
        y = m.conv(x)
        if how == "view":
            return y + m.gate(x.mean((2, 3))).view(-1, k, 1, 1)
        if how == "unflatten":
            return y.flatten(1).unflatten(1, (k, n, n))
        if how == "expand":
            return y * y.mean(1, keepdim=True).expand(-1, k, -1, -1)
        return F.linear(y.permute(0, 2, 3, 1).reshape(-1, k), m.mix.weight).view(-1, n, n, k).permute(0, 3, 1, 2)

    mix = nn.Linear(width, width, bias=False)
    return Block(forward, conv=conv(c, width), gate=nn.Linear(c, width), mix=mix, shape=shape)


@block()
def kept_unread(pick: Pick, c: int, n: int) -> nn.Module:
    """Numbers that only a later `reset_classifier` would read, and others that happen to equal a width."""
    width = pick(WIDTHS)
    body = Block(lambda m, x: F.relu(m.conv(x)), conv=conv(c, width), num_features=width, info=[{"num_chs": width}])
    return Block(lambda m, x: m.body(x) * m.level, body=body, level=pick((4, 6)), in_chs=c, out_chs=width, depth=width)


@block()
def kept_scale(pick: Pick, c: int, n: int) -> nn.Module:
    width = pick((4, 9, 16))
    scale = pick((width**0.5, width**-0.5, 1 / width))
    return Block(lambda m, x: m.conv(x) * m.scale, conv=conv(c, width), scale=scale)


@block()
def kept_groups(pick: Pick, c: int, n: int) -> nn.Module:
    """Groups of a convolution or norm that the forward calls itself, as attributes."""
    width, groups, how = pick((8, 12)), pick((2, 4)), pick(("norm", "conv", "shuffle", "radix"))

    def forward(m: Block, x: Tensor) -> Tensor:
        y = m.conv(x)
        b, k, h, w = y.shape
        if how == "norm":
            return F.group_norm(y, m.groups, m.gamma, None)
        if how == "conv":
            return F.conv2d(y, m.kernel, groups=m.groups, padding=1)
        if how == "shuffle":
            return y.view(b, m.groups, k // m.groups, h, w).transpose(1, 2).flatten(1, 2)
        return y.view(b, m.groups, -1, h, w).sum(1)

    kernel = nn.Parameter(torch.randn(width, width // groups, 3, 3))
    gamma = nn.Parameter(torch.ones(width))
    return Block(forward, conv=conv(c, width), kernel=kernel, gamma=gamma, groups=groups, reads=("kernel.1",))


def _heads(c: int) -> list[tuple[int, int]]:
    return [(h, c // h) for h in (2, 3, 4, 1) if c % h == 0]


@block()
def heads(pick: Pick, c: int, n: int) -> nn.Module:
    """Attention with `num_heads` and `head_dim` as attributes, which ends in reshape(B, N, C) of its input."""
    count, dim = pick(_heads(c))
    how, ending = pick(("fused", "by_hand", "joint_fused", "joint")), pick(("input", "heads", "open"))

    def forward(m: Block, x: Tensor) -> Tensor:
        t = x.flatten(2).transpose(1, 2)
        b, length, k = t.shape
        if "joint" in how:
            q, key, v = m.qkv(t).reshape(b, length, 3, m.num_heads, m.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            shape = b, length, m.num_heads, m.head_dim
            q, key, v = (f(t).view(shape).transpose(1, 2) for f in (m.q, m.k, m.v))
        if "fused" in how:
            y = F.scaled_dot_product_attention(q, key, v)
        else:
            y = torch.softmax((q * m.scale) @ key.transpose(-2, -1), -1) @ v
        width = {"input": k, "heads": m.num_heads * m.head_dim, "open": -1}[ending]
        return m.out(y.transpose(1, 2).reshape(b, length, width)).transpose(1, 2).reshape(x.shape) + x

    linears = {"qkv": nn.Linear(c, 3 * c)} if "joint" in how else {key: nn.Linear(c, c) for key in "qkv"}
    return Block(
        forward, **linears, out=nn.Linear(c, c), num_heads=count, head_dim=dim, scale=dim**-0.5, dim=c, zero=(*linears,)
    )


@block()
def heads_inner(pick: Pick, c: int, n: int) -> nn.Module:
    """Attention with an inner width of its own: num_heads * head_dim channels, grouped queries perhaps."""
    count, dim, shared = pick(((2, 3), (4, 2), (3, 4))), None, pick((False, True))
    count, dim = count

    def forward(m: Block, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q = m.q(x).view(b, m.num_heads, m.head_dim, h * w)
        k, v = m.kv(x).view(b, 2, 1 if shared else m.num_heads, m.head_dim, h * w).unbind(1)
        y = torch.softmax(q.transpose(-2, -1) @ k * m.head_dim**-0.5, -1) @ v.transpose(-2, -1)
        return m.out(y.transpose(-2, -1).reshape(b, m.num_heads * m.head_dim, h, w))

    parts = {"q": conv(c, count * dim, 1), "kv": conv(c, 2 * dim * (1 if shared else count), 1)}
    return Block(forward, **parts, out=conv(count * dim, c, 1), num_heads=count, head_dim=dim, zero=("q", "kv"))


@block()
def cross_covariance(pick: Pick, c: int, n: int) -> nn.Module:
    """Attention between channels (XCA): whole heads can go."""
    count, _ = pick(_heads(c))

    def forward(m: Block, x: Tensor) -> Tensor:
        t = x.flatten(2).transpose(1, 2)
        b, length, k = t.shape
        qkv = m.qkv(t).reshape(b, length, 3, m.num_heads, k // m.num_heads).permute(2, 0, 3, 4, 1)
        q, key, v = qkv.unbind(0)
        q, key = F.normalize(q, dim=-1), F.normalize(key, dim=-1)
        y = torch.softmax(q @ key.transpose(-2, -1) * m.temperature, -1) @ v
        return m.out(y.permute(0, 3, 1, 2).reshape(b, length, k)).transpose(1, 2).reshape(x.shape) + x

    temperature = nn.Parameter(torch.ones(count, 1, 1))
    return Block(forward, qkv=nn.Linear(c, 3 * c), out=nn.Linear(c, c), temperature=temperature, num_heads=count)


@block()
def equal_width(pick: Pick, c: int, n: int) -> nn.Module:
    """A branch that is reshaped to as many channels as come in: equally many must stay, not the same."""
    how = pick(("tokens", "map", "view_as", "expand_as"))

    def forward(m: Block, x: Tensor) -> Tensor:
        b, k, h, w = x.shape
        y = F.relu(m.inner(x))
        if how == "tokens":
            return m.out(y.flatten(2).transpose(1, 2).reshape(b, h, w, k).permute(0, 3, 1, 2)) + x
        if how == "map":
            return m.out(y.reshape(b, k, h, w)) + x
        if how == "view_as":
            return m.out(y.view_as(x)) + x
        return m.out(y.reshape(b, k, h * w).reshape(x.shape)) * x

    return Block(forward, inner=conv(c, c), out=conv(c, c, 1))
