"""Networks whose output is an image or boxes: U-Net, SegFormer, BiSeNet, YOLO, feature pyramids, non-local, RAFT."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection
from zoo_layers import conv, takes


class UNet(nn.Module):
    """Four scales, transposed convolutions upwards, skips by concatenation."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        w = [width * 2**i for i in range(4)]
        self.down = nn.ModuleList(nn.Sequential(conv(a, b), conv(b, b)) for a, b in zip((3, *w[:-1]), w, strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in zip(w[:-1], w[1:], strict=True))
        self.merge = nn.ModuleList(nn.Sequential(conv(2 * a, a), conv(a, a)) for a in w[:-1])
        self.head = nn.Conv2d(w[0], 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for i in (2, 1, 0):
            x = self.merge[i](torch.cat([skips[i], self.up[i](x)], 1))
        return self.head(x)


class ReducedAttention(nn.Module):
    """SegFormer's attention: keys and values from a smaller image; B, N, C and heads are read from the tensors."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.scale = (dim // heads) ** -0.5
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, reduction)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        b, n, c = x.shape
        q = self.q(x).reshape(b, n, self.heads, c // self.heads).permute(0, 2, 1, 3)
        if self.reduction > 1:
            x = self.sr(x.permute(0, 2, 1).reshape(b, c, height, width))
            x = self.norm(x.reshape(b, c, -1).permute(0, 2, 1))
        kv = self.kv(x).reshape(b, -1, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        k, v = kv[0], kv[1]
        attention = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(b, n, c))


class SegformerBlock(nn.Module):
    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = ReducedAttention(dim, heads, reduction)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.depthwise = nn.Conv2d(4 * dim, 4 * dim, 3, padding=1, groups=4 * dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.attention(self.norm1(x), height, width)
        y = self.fc1(self.norm2(x))
        b, n, c = y.shape
        y = self.depthwise(y.transpose(1, 2).view(b, c, height, width)).flatten(2).transpose(1, 2)
        return x + self.fc2(F.gelu(y))


class Segformer(nn.Module):
    """Three stages of attention with reduced keys, and a head of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        dims, heads, reductions = (32, 64, 96), (1, 2, 3), (4, 2, 1)
        self.embed = nn.ModuleList(
            nn.Conv2d(a, b, 7 if i == 0 else 3, 4 if i == 0 else 2, 3 if i == 0 else 1)
            for i, (a, b) in enumerate(zip((3, *dims[:-1]), dims, strict=True))
        )
        self.blocks = nn.ModuleList(
            nn.ModuleList(SegformerBlock(d, h, r) for _ in range(2))
            for d, h, r in zip(dims, heads, reductions, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(d) for d in dims)
        self.linear = nn.ModuleList(nn.Linear(d, 48) for d in dims)
        self.fuse, self.head = conv(3 * 48, 48, 1), nn.Conv2d(48, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        scales: list[Tensor] = []
        for embed, blocks, norm, linear in zip(self.embed, self.blocks, self.norms, self.linear, strict=True):
            x = embed(x)
            b, c, h, w = x.shape
            x = x.flatten(2).transpose(1, 2)
            for block in blocks:
                x = block(x, h, w)
            x = norm(x).reshape(b, h, w, -1).permute(0, 3, 1, 2).contiguous()
            y = linear(x.flatten(2).transpose(1, 2)).permute(0, 2, 1).reshape(b, -1, h, w)
            scales.append(F.interpolate(y, scales[0].shape[2:] if scales else (h, w), mode="bilinear"))
        return self.head(self.fuse(torch.cat(scales, 1)))


class Refine(nn.Module):
    """BiSeNet's attention refinement."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.gate = conv(inputs, outputs), conv(outputs, outputs, 1, act=nn.Sigmoid)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * self.gate(F.adaptive_avg_pool2d(x, 1))


class BiSeNet(nn.Module):
    """A spatial path, a context path with global pooling, and a fusion gate."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Sequential(conv(3, 32, 7, 2), conv(32, 32, 3, 2), conv(32, 64, 1))
        self.context = nn.ModuleList(
            nn.Sequential(conv(a, b, 3, 2), conv(b, b)) for a, b in ((3, 16), (16, 32), (32, 64), (64, 96))
        )
        self.refine16, self.refine8, self.whole = Refine(96, 64), Refine(64, 64), conv(96, 64, 1)
        self.fuse = conv(128, 64, 1)
        self.gate = nn.Sequential(nn.Conv2d(64, 16, 1), nn.ReLU(), nn.Conv2d(16, 64, 1), nn.Sigmoid())
        self.head = nn.Conv2d(64, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        spatial, scales = self.spatial(x), []
        for stage in self.context:
            x = stage(x)
            scales.append(x)
        y = self.refine16(x) + self.whole(x.mean((2, 3), keepdim=True))
        y = self.refine8(scales[2]) + F.interpolate(y, scales[2].shape[2:])
        y = self.fuse(torch.cat([spatial, F.interpolate(y, spatial.shape[2:])], 1))
        return self.head(y + y * self.gate(y.mean((2, 3), keepdim=True)))


class C2f(nn.Module):
    """YOLOv8's block: half of the channels go through a chain of bottlenecks, and all stages are concatenated."""

    def __init__(self, inputs: int, outputs: int, depth: int = 2) -> None:
        super().__init__()
        self.half = outputs // 2
        self.first = conv(inputs, 2 * self.half, 1, act=nn.SiLU)
        self.last = conv((2 + depth) * self.half, outputs, 1, act=nn.SiLU)
        self.chain = nn.ModuleList(
            nn.Sequential(conv(self.half, self.half, act=nn.SiLU), conv(self.half, self.half, act=nn.SiLU))
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.first(x).split((self.half, self.half), 1))
        for block in self.chain:
            y.append(y[-1] + block(y[-1]))
        return self.last(torch.cat(y, 1))


class Detect(nn.Module):
    """Boxes as distributions over 16 bins; grids are made by the first pass of a size and kept."""

    def __init__(self, widths: tuple[int, ...], classes: int = 7, bins: int = 16) -> None:
        super().__init__()
        self.classes, self.bins, self.outputs = classes, bins, classes + 4 * bins
        self.shape: torch.Size | None = None
        self.grid = torch.empty(0)
        self.box = nn.ModuleList(nn.Sequential(conv(w, 32), nn.Conv2d(32, 4 * bins, 1)) for w in widths)
        self.label = nn.ModuleList(nn.Sequential(conv(w, 32), nn.Conv2d(32, classes, 1)) for w in widths)
        self.expected = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.expected.weight.data[:] = torch.arange(bins, dtype=torch.float).view(1, bins, 1, 1)

    def forward(self, scales: list[Tensor]) -> Tensor:
        found = [torch.cat([b(x), c(x)], 1) for b, c, x in zip(self.box, self.label, scales, strict=True)]
        if self.shape != scales[0].shape:
            self.shape = scales[0].shape
            points = [torch.cartesian_prod(torch.arange(x.shape[2]), torch.arange(x.shape[3])) for x in scales]
            self.grid = torch.cat(points).float().to(scales[0].device)
        flat = torch.cat([x.view(x.shape[0], self.outputs, -1) for x in found], 2)
        box, label = flat.split((4 * self.bins, self.classes), 1)
        b, _, n = box.shape
        sides = self.expected(box.view(b, 4, self.bins, n).transpose(2, 1).softmax(1)).view(b, 4, n)
        centre = self.grid.t()[None]
        return torch.cat([centre - sides[:, :2], centre + sides[:, 2:], label.sigmoid()], 1)


class Yolo(nn.Module):
    """Backbone with C2f blocks and a pooling pyramid, a path upwards and one downwards, two scales of boxes."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.SiLU
        self.stem = nn.Sequential(conv(3, 16, 3, 2, act), conv(16, 32, 3, 2, act), C2f(32, 32))
        self.stage3 = nn.Sequential(conv(32, 64, 3, 2, act), C2f(64, 64))
        self.stage4 = nn.Sequential(conv(64, 128, 3, 2, act), C2f(128, 128))
        self.squeeze, self.pyramid = conv(128, 64, 1, act=act), conv(256, 128, 1, act=act)
        self.up, self.down, self.last = C2f(192, 64), conv(64, 64, 3, 2, act), C2f(192, 128)
        self.detect = Detect((64, 128))

    def forward(self, x: Tensor) -> Tensor:
        c3 = self.stage3(self.stem(x))
        pools = [self.squeeze(self.stage4(c3))]
        for _ in range(3):
            pools.append(F.max_pool2d(pools[-1], 5, 1, 2))
        c4 = self.pyramid(torch.cat(pools, 1))
        p3 = self.up(torch.cat([F.interpolate(c4, scale_factor=2.0), c3], 1))
        p4 = self.last(torch.cat([self.down(p3), c4], 1))
        return self.detect([p3, p4])


class NonLocal(nn.Module):
    """Non-local blocks over space: `view(b, c // 2, -1)` with the c of the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.theta, self.phi, self.g = (nn.Conv2d(width, width // 2, 1) for _ in range(3))
        self.out = nn.Sequential(nn.Conv2d(width // 2, width, 1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        b, c = x.shape[:2]
        theta = self.theta(x).view(b, c // 2, -1).permute(0, 2, 1)
        phi, g = self.phi(x).view(b, c // 2, -1), self.g(x).view(b, c // 2, -1).permute(0, 2, 1)
        y = ((theta @ phi) / theta.shape[1] @ g).permute(0, 2, 1).reshape(b, c // 2, *x.shape[2:])
        return x + self.out(y)


class Correlation(nn.Module):
    """RAFT-like: all pairs of two feature maps, scaled by the root of the width, looked up and refined by a ConvGRU."""

    def __init__(self, width: int = 64, hidden: int = 48, context: int = 32) -> None:
        super().__init__()
        self.hidden, self.context = hidden, context
        self.features = nn.Sequential(
            conv(3, 32, 7, 2), conv(32, 48, 3, 2), conv(48, width, 3, 2), nn.Conv2d(width, width, 1)
        )
        self.state = nn.Sequential(conv(3, 32, 7, 2), conv(32, 48, 3, 2), nn.Conv2d(48, hidden + context, 3, 2, 1))
        self.motion = nn.Sequential(nn.Conv2d(64, 64, 1), nn.ReLU(), nn.Conv2d(64, 46, 3, padding=1), nn.ReLU())
        inputs = hidden + context + 46 + 2
        self.z, self.r, self.q = (nn.Conv2d(inputs, hidden, 3, padding=1) for _ in range(3))
        self.flow = nn.Sequential(nn.Conv2d(hidden, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 2, 3, padding=1))

    def forward(self, pair: Tensor) -> Tensor:
        a, b = pair.unbind(1)
        fa, fb = self.features(torch.cat([a, b])).chunk(2)
        n, c, h, w = fa.shape
        volume = fa.view(n, c, h * w).transpose(1, 2) @ fb.view(n, c, h * w) / c**0.5
        volume = volume.view(n, h, w, h * w).permute(0, 3, 1, 2)
        state, context = self.state(a).split([self.hidden, self.context], 1)
        state, context = state.tanh(), context.relu()
        flow = a.new_zeros(n, 2, h, w)
        for _ in range(3):
            x = torch.cat([context, self.motion(volume), flow], 1)
            gates = torch.cat([state, x], 1)
            z, r = self.z(gates).sigmoid(), self.r(gates).sigmoid()
            state = (1 - z) * state + z * self.q(torch.cat([r * state, x], 1)).tanh()
            flow = flow + self.flow(state)
        return flow


class Pyramid(nn.Module):
    """The backbone of a torchvision detector with its head: everything before boxes are chosen by their values."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.head = detector.rpn.head if hasattr(detector, "rpn") else detector.head

    def forward(self, x: Tensor) -> list[Tensor]:
        found = self.head(list(self.backbone(x).values()))
        return list(found.values()) if isinstance(found, dict) else [t for part in found for t in part]


@takes(3, 64, 64)
def unet() -> nn.Module:
    return UNet()


@takes(3, 128, 128)
def segformer() -> nn.Module:
    return Segformer()


@takes(3, 128, 128)
def bisenet() -> nn.Module:
    return BiSeNet()


@takes(3, 64, 64)
def yolo() -> nn.Module:
    return Yolo()


@takes(3, 32, 32)
def nonlocal_net() -> nn.Module:
    stages = [conv(3, 32), NonLocal(32), conv(32, 64, 3, 2), NonLocal(64), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*stages, nn.Linear(64, 10))


@takes(2, 3, 64, 64)
def raft() -> nn.Module:
    return Correlation()


@takes(3, 128, 128)
def fasterrcnn_pyramid() -> nn.Module:
    return Pyramid(detection.fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None))


@takes(3, 128, 128)
def retinanet_pyramid() -> nn.Module:
    return Pyramid(detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None))


@takes(3, 128, 128)
def fcos_pyramid() -> nn.Module:
    return Pyramid(detection.fcos_resnet50_fpn(weights=None, weights_backbone=None))


@takes(3, 300, 300)
def ssd_head() -> nn.Module:
    return Pyramid(detection.ssd300_vgg16(weights=None, weights_backbone=None))
