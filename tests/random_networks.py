"""Random small convolutional networks, drawn block by block: the inputs of the property tests.

    @given(networks())
    def test(network): network.model, network.inputs, network.recipe

Each block is a few lines that do to channels what some published network does. A block is built from picks out of
short lists, so hypothesis shrinks a failure to few blocks with the first option everywhere. `build(recipe)` rebuilds
the network of a failure from the recipe that is printed with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

Pick = Callable[[Sequence[Any]], Any]
Maker = Callable[[Pick, int, int], nn.Module]
SIZE = 8
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


# -- convolutions


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


# -- joining branches


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


# -- parts of channels


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


# -- channels in another order


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

    return nn.Sequential(Block(forward, order=order), nn.LazyConv2d(6, 1))


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


# -- gates, masks and statistics over channels


@block()
def squeeze_excite(pick: Pick, c: int, n: int) -> nn.Module:
    if pick((True, False)):
        gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(c, 3, 1), nn.ReLU(), conv(3, c, 1), nn.Hardsigmoid())
        return Block(lambda m, x: m.gate(x) * x, gate=gate)
    gate = nn.Sequential(nn.Linear(c, 3), nn.ReLU(), nn.Linear(3, c), nn.Sigmoid())
    return Block(lambda m, x: x * m.gate(x.mean((2, 3)))[:, :, None, None], gate=gate)


@block()
def efficient_attention(pick: Pick, c: int, n: int) -> nn.Module:
    """A convolution along the channel axis: it must freeze them."""

    def forward(m: Block, x: Tensor) -> Tensor:
        y = m.conv(x.mean((2, 3)).unsqueeze(1)).squeeze(1)
        return x * y.sigmoid()[:, :, None, None]

    return Block(forward, conv=nn.Conv1d(1, 1, 3, padding=1))


@block()
def mask(pick: Pick, c: int, n: int) -> nn.Module:
    how = pick(("conv", "mean", "amax", "both", "sum", "norm"))

    def forward(m: Block, x: Tensor) -> Tensor:
        if how == "conv":
            return x * m.one(x).sigmoid()
        if how == "both":
            return x * m.two(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()
        if how == "norm":
            return x / (x.norm(dim=1, keepdim=True) + 1)
        return x * {"mean": x.mean, "amax": x.amax, "sum": x.sum}[how](1, keepdim=True).sigmoid()

    return Block(forward, one=conv(c, 1, 1), two=conv(2, 1), adds=how == "sum")


@block()
def channel_softmax(pick: Pick, c: int, n: int) -> nn.Module:
    fn = pick((torch.softmax, torch.log_softmax, F.normalize))
    return Block(lambda m, x: m.conv(x) * fn(x, dim=1), conv=conv(c, c, 1))


@block()
def group_norm(pick: Pick, c: int, n: int) -> nn.Module:
    groups = pick([g for g in (1, 2, 4, c) if c % g == 0])
    return nn.Sequential(nn.GroupNorm(groups, c, affine=pick((True, False))), nn.ReLU())


@block()
def layer_norm(pick: Pick, c: int, n: int) -> nn.Module:
    norm = pick((nn.LayerNorm, nn.RMSNorm))(c, eps=1e-5)
    return Block(lambda m, x: m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=norm)


@block()
def instance_norm(pick: Pick, c: int, n: int) -> nn.Module:
    return nn.InstanceNorm2d(c, affine=pick((True, False)), track_running_stats=pick((False, True)))


@block()
def prelu(pick: Pick, c: int, n: int) -> nn.Module:
    return nn.PReLU(pick((c, 1)))


@block()
def scale(pick: Pick, c: int, n: int) -> nn.Module:
    shape = pick(((c, 1, 1), (1, c, 1, 1), (1, 1, n, n), (c, n, n), ()))
    return Block(lambda m, x: x * m.gamma + m.table, gamma=nn.Parameter(torch.ones(shape)), table=torch.randn(shape))


# -- contractions written by hand


@block()
def einsum(pick: Pick, c: int, n: int) -> nn.Module:
    out = pick(WIDTHS)
    return Block(
        lambda m, x: torch.einsum("bchw,dc->bdhw", x, m.weight), weight=nn.Parameter(torch.randn(out, c)), reads=1
    )


@block()
def channel_attention(pick: Pick, c: int, n: int) -> nn.Module:
    d = pick((4, 6))

    def forward(m: Block, x: Tensor) -> Tensor:
        q, k, v = (f(x).flatten(2) for f in (m.q, m.k, m.v))
        y = torch.softmax(q @ k.transpose(1, 2) / 8, -1) @ v
        return m.out(y.view(x.shape[0], -1, *x.shape[2:]))

    return Block(forward, q=conv(c, d, 1), k=conv(c, d, 1), v=conv(c, d, 1), out=conv(d, c, 1), adds=True)


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

    return Block(forward, qkv=nn.Linear(c, 3 * heads * d), out=nn.Linear(heads * d, c), adds=True)


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


# -- space, shape and the rest


@block()
def resample(pick: Pick, c: int, n: int) -> nn.Module:
    mode = pick(("nearest", "bilinear", "bicubic", "area"))
    size = pick((n, 4, 6))
    return Block(lambda m, x: F.interpolate(x, size=(size, size), mode=mode), scale=nn.Parameter(torch.ones(1)))


@block(space=2)
def pool(pick: Pick, c: int, n: int) -> nn.Module:
    return pick((nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(n // 2), nn.AdaptiveMaxPool2d(n // 2),
                 nn.LPPool2d(2, 2)))  # fmt: skip


@block()
def padding(pick: Pick, c: int, n: int) -> nn.Module:
    mode = pick(("constant", "reflect", "replicate", "circular", "channels"))
    if mode == "channels":
        return Block(lambda m, x: m.conv(F.pad(x, (0, 0, 0, 0, 1, 2), value=0.5)), conv=conv(c + 3, 6))
    body = nn.Conv2d(c, pick(WIDTHS), 3)
    return Block(lambda m, x: m.body(F.pad(x, (1, 1, 1, 1), mode=mode)), body=body)


@block()
def squeezes(pick: Pick, c: int, n: int) -> nn.Module:
    def forward(m: Block, x: Tensor) -> Tensor:
        y = m.volume(x.unsqueeze(2)).squeeze(2)
        return y + x[:, :, None].mean(2)

    return Block(forward, volume=nn.Conv3d(c, c, (1, 3, 3), padding=(0, 1, 1)))


@block()
def inplace(pick: Pick, c: int, n: int) -> nn.Module:
    def forward(m: Block, x: Tensor) -> Tensor:
        y = m.conv(x).relu_()
        y += m.short(x)
        y.mul_(0.5).clamp_(-3, 3)
        return y

    out = pick(WIDTHS)
    return Block(forward, conv=conv(c, out), short=conv(c, out, 1))


@block()
def ordered(pick: Pick, c: int, n: int) -> nn.Module:
    """Operations that depend on the order or number of channels, or that no rule covers: they must freeze them."""
    how = pick(("cumsum", "sort", "fft", "argmax", "topk", "fft2", "std", "var", "prod", "logsumexp", "flip_mean"))

    def forward(m: Block, x: Tensor) -> Tensor:
        y = m.conv(x)
        if how == "cumsum":
            return y.cumsum(1)
        if how == "sort":
            return y.sort(1).values
        if how == "fft":
            return torch.fft.fft(y, dim=1).real
        if how == "fft2":
            return torch.fft.fft2(y).real / 8
        if how == "argmax":
            return y + y.argmax(1, keepdim=True)
        if how == "topk":
            return y.topk(3, 1).values
        if how == "flip_mean":
            return y - y.flip(1).mean(1, keepdim=True)
        if how in ("std", "var"):
            return y / (1 + getattr(y, how)(1, keepdim=True, correction=0))
        return y / (1 + getattr(y, how)(1, keepdim=True).abs())

    return Block(forward, conv=conv(c, pick(WIDTHS)))


# -- whole networks


@dataclass
class Answer:
    """A dataclass that a network returns."""

    scores: Tensor
    features: Tensor


class Network(nn.Module):
    """A stem, some blocks and a head. With `second`, another input joins after the stem."""

    def __init__(self, stem: nn.Module, second: nn.Module | None, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.stem, self.second, self.body, self.head = stem, second, body, head

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        x = self.stem(x)
        if self.second is not None:
            x = x + self.second(y)
        return self.head(self.body(x))


def sequence(pick: Pick, c: int, n: int, length: int) -> tuple[nn.Sequential, int, int]:
    """Some blocks in a row; also returns the channels and size that come out."""
    layers = []
    for _ in range(length):
        fitting = [k for k, (_, channels, space) in BLOCKS.items() if c % channels == 0 and n % space == 0]
        layer = BLOCKS[pick(fitting)][0](pick, c, n).double()
        layers.append(layer)
        c, n = _out(layer, c, n)
    return nn.Sequential(*layers), c, n


def _out(layer: nn.Module, c: int, n: int) -> tuple[int, int]:
    with torch.no_grad():
        shape = layer.eval()(torch.zeros(1, c, n, n, dtype=torch.float64)).shape
    return shape[1], shape[2]


def head(pick: Pick, c: int, n: int) -> nn.Module:
    kind = pick(("pool", "flatten", "conv", "map", "dict", "tuple", "dataclass", "features", "flatten_pool"))
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 5))
    if kind == "flatten":
        return nn.Sequential(nn.Flatten(), nn.Linear(c * n * n, 7), nn.ReLU(), nn.Linear(7, 5))
    if kind == "flatten_pool":
        return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(4 * c, 5))
    if kind == "conv":
        return nn.Sequential(conv(c, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    if kind == "map":
        return conv(c, 5)
    if kind == "features":
        return nn.Identity()
    if kind == "dict":
        return Block(lambda m, x: {"out": m.a(x), "aux": m.b(x)}, a=pooled, b=conv(c, 2))
    if kind == "tuple":
        return Block(lambda m, x: (m.a(x), [m.b(x), None]), a=pooled, b=conv(c, 2))
    if kind == "dataclass":
        return Block(lambda m, x: Answer(m.a(x), m.b(x)), a=pooled, b=conv(c, 2))
    return pooled


class Drawn:
    """A network with inputs to run it on, and the recipe to build it again."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...], recipe: list[int]) -> None:
        self.model, self.inputs, self.recipe = model, inputs, recipe

    def __repr__(self) -> str:
        return f"build({self.recipe})  # {self.model}"


def assemble(pick: Pick) -> tuple[nn.Module, tuple[Tensor, ...]]:
    width, two = pick(WIDTHS), pick((False, True))
    stem = nn.Sequential(conv(3, width, bias=False), nn.BatchNorm2d(width), nn.ReLU()).double()
    second = conv(2, width, 1) if two else None
    body, c, n = sequence(pick, width, SIZE, pick((1, 2, 3, 4, 5)))
    model = Network(stem, second, body, head(pick, c, n)).double()
    randomise(model)
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, 3, SIZE, SIZE)] + ([(2, 2, SIZE, SIZE)] if two else [])
    return model.eval(), tuple(torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes)


def build(recipe: Sequence[int]) -> Drawn:
    """The network that hypothesis printed."""
    rest = iter(recipe)
    model, inputs = assemble(lambda options: options[next(rest, 0) % len(options)])
    return Drawn(model, inputs, list(recipe))


@st.composite
def networks(draw: st.DrawFn) -> Drawn:
    """Strategy: random networks in float64 with random weights, statistics and inputs."""
    recipe: list[int] = []

    def pick(options: Sequence[Any]) -> Any:
        recipe.append(draw(st.integers(0, len(options) - 1)) if len(options) > 1 else 0)
        return options[recipe[-1]]

    model, inputs = assemble(pick)
    return Drawn(model, inputs, recipe)


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
