"""Convolutions whose weights the forward pass computes. `reads` names parameters with the dimension that reads."""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.random_networks.blocks import WIDTHS, Block, Pick, block, conv


@block()
def summed_weights(pick: Pick, c: int, n: int) -> nn.Module:
    """As a RepVGG block that is fused on the fly."""
    out, how = pick(WIDTHS), pick(("same", "padded", "identity", "product"))
    second = nn.Parameter(torch.randn(out, c, *((1, 1) if how == "padded" else (3, 3))))

    def forward(m: Block, x: Tensor) -> Tensor:
        w = m.conv.weight
        if how == "product":
            return F.conv2d(x, w * m.second, m.conv.bias, padding=1)
        w = w + (F.pad(m.second, (1, 1, 1, 1)) if how == "padded" else m.second)
        y = F.conv2d(x, w, m.conv.bias, padding=1)
        return y + m.short(x) if how == "identity" else y

    return Block(forward, conv=conv(c, out), second=second, short=conv(c, out, 1), reads=("second.1",))


@block()
def masked_weight(pick: Pick, c: int, n: int) -> nn.Module:
    out, shape = pick(WIDTHS), pick(("full", "rows", "kernel", "inputs"))
    size = {"full": (out, c, 3, 3), "rows": (out, 1, 1, 1), "kernel": (3, 3), "inputs": (1, c, 1, 1)}[shape]
    mask = (torch.rand(size, generator=torch.Generator().manual_seed(3)) > 0.3).double()
    return Block(
        lambda m, x: F.conv2d(x, m.conv.weight * m.mask, m.conv.bias, padding=1), conv=conv(c, out), mask=mask
    )


@block()
def mixture_of_experts(pick: Pick, c: int, n: int) -> nn.Module:
    """Conditionally parametrised convolutions: each image mixes its own kernel."""
    out, experts, flat = pick(WIDTHS), pick((3, 4)), pick((False, True))

    def forward(m: Block, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        gate = m.route(x.mean((2, 3))).sigmoid()
        if flat:
            weight = (gate @ m.kernels.flatten(1)).view(b * out, -1, 3, 3)
        else:
            weight = torch.einsum("be,eoikl->boikl", gate, m.kernels).flatten(0, 1)
        return F.conv2d(x.reshape(1, -1, h, w), weight, padding=1, groups=b).view(b, -1, h, w)

    kernels = nn.Parameter(torch.randn(experts, out, c, 3, 3) * (9 * c) ** -0.5)
    return Block(forward, route=nn.Linear(c, experts), kernels=kernels, reads=("kernels.2", "kernels.0"))


@block()
def experts_per_batch(pick: Pick, c: int, n: int) -> nn.Module:
    out = pick(WIDTHS)

    def forward(m: Block, x: Tensor) -> Tensor:
        gate = torch.softmax(m.gate, 0)
        return F.conv2d(x, (gate[:, None, None, None, None] * m.kernels).sum(0), padding=1)

    kernels = nn.Parameter(torch.randn(3, out, c, 3, 3) * (9 * c) ** -0.5)
    return Block(forward, gate=nn.Parameter(torch.randn(3)), kernels=kernels, reads=("kernels.2", "kernels.0"))


@block()
def low_rank(pick: Pick, c: int, n: int) -> nn.Module:
    """A linear layer over channels with a correction of low rank."""
    out, rank, how = pick(WIDTHS), pick((2, 3)), pick(("weight", "conv", "branch"))

    def forward(m: Block, x: Tensor) -> Tensor:
        if how == "conv":
            return F.conv2d(x, m.linear.weight[:, :, None, None] + (m.a @ m.b)[:, :, None, None], m.linear.bias)
        t = x.permute(0, 2, 3, 1)
        if how == "branch":
            return (m.linear(t) + t @ m.b.t() @ m.a.t() * 0.5).permute(0, 3, 1, 2)
        return F.linear(t, m.linear.weight + m.a @ m.b, m.linear.bias).permute(0, 3, 1, 2)

    a, b = nn.Parameter(torch.randn(out, rank)), nn.Parameter(torch.randn(rank, c))
    return Block(forward, linear=nn.Linear(c, out), a=a, b=b, reads=("b.1", "a.1"))


@block()
def scaled_by_fan_in(pick: Pick, c: int, n: int) -> nn.Module:
    """Equalised learning rates."""
    out, how = pick(WIDTHS), pick(("numel", "shape", "sqrt", "rows"))

    def forward(m: Block, x: Tensor) -> Tensor:
        w = m.conv.weight
        scale = {
            "numel": lambda: w[0].numel() ** -0.5,
            "shape": lambda: (w.shape[1] * 9) ** -0.5,
            "sqrt": lambda: 1 / math.sqrt(x.shape[1]),
            "rows": lambda: math.sqrt(2 / w.shape[0]),
        }[how]()
        return F.conv2d(x, w * scale, m.conv.bias, padding=1)

    return Block(forward, conv=conv(c, out))


@block()
def modulated(pick: Pick, c: int, n: int) -> nn.Module:
    """Kernels modulated by a style for each image, and demodulated by their norm."""
    out, demodulate = pick(WIDTHS), pick((True, False))

    def forward(m: Block, x: Tensor) -> Tensor:
        b, k, h, w = x.shape
        style = m.style(x.mean((2, 3))).view(b, 1, k, 1, 1)
        weight = m.kernel * style
        if demodulate:
            weight = weight * torch.rsqrt(weight.pow(2).sum((2, 3, 4), keepdim=True) + 1e-8)
        weight = weight.view(b * out, k, 3, 3)
        return F.conv2d(x.reshape(1, b * k, h, w), weight, padding=1, groups=b).view(b, -1, h, w)

    kernel = nn.Parameter(torch.randn(1, out, c, 3, 3) * (9 * c) ** -0.5)
    return Block(forward, kernel=kernel, style=nn.Linear(c, c), reads=("kernel.2",))


@block()
def hooked_weight_norm(pick: Pick, c: int, n: int) -> nn.Module:
    kind = pick((nn.utils.weight_norm, nn.utils.parametrizations.weight_norm))
    out, dim = pick(WIDTHS), pick((0, None))
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # a weight with a history cannot be deep-copied
        return nn.Sequential(kind(conv(c, out), dim=dim), nn.ReLU(), kind(conv(out, out, 1), dim=0))


@block()
def generated(pick: Pick, c: int, n: int) -> nn.Module:
    """A small network makes the depthwise kernels."""

    def forward(m: Block, x: Tensor) -> Tensor:
        b, k, h, w = x.shape
        kernel = m.make(x.mean((2, 3))).view(b * k, 1, 3, 3)
        return F.conv2d(x.reshape(1, b * k, h, w), kernel, padding=1, groups=b * k).view(b, k, h, w)

    return Block(forward, make=nn.Linear(c, 9 * c))
