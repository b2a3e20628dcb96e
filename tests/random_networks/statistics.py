"""Gates, masks and statistics over channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.random_networks.blocks import Block, Pick, block, conv


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
