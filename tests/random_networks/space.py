"""Space, shape and operations that depend on the order of channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.random_networks.blocks import WIDTHS, Block, Pick, block, conv


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


@block(space=2)
def unpooled(pick: Pick, c: int, n: int) -> nn.Module:
    functional = pick((True, False))

    def forward(m: Block, x: Tensor) -> Tensor:
        y, where = F.max_pool2d(m.conv(x), 2, return_indices=True)
        y = m.inner(y)
        return F.max_unpool2d(y, where, 2) if functional else m.up(y, where)

    out = pick(WIDTHS)
    return Block(forward, conv=conv(c, out), inner=conv(out, out, 1), up=nn.MaxUnpool2d(2))


@block()
def spectral(pick: Pick, c: int, n: int) -> nn.Module:
    """Fourier transforms along space, with a filter for each channel."""
    how = pick(("filter", "rfft", "real"))

    def forward(m: Block, x: Tensor) -> Tensor:
        if how == "real":
            return torch.fft.fft2(x, norm="ortho").real + x
        y = torch.fft.rfft2(x, norm="ortho")
        if how == "filter":
            y = y * torch.view_as_complex(m.filter)
        return torch.fft.irfft2(y, s=x.shape[-2:], norm="ortho")

    return Block(forward, filter=nn.Parameter(torch.randn(c, n, n // 2 + 1, 2)))


@block()
def autocast(pick: Pick, c: int, n: int) -> nn.Module:
    def forward(m: Block, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return m.body(x).to(x.dtype)

    return Block(forward, body=nn.Sequential(conv(c, 6), nn.ReLU(), conv(6, pick(WIDTHS), 1)))
