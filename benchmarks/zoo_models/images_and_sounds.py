"""Networks that make or restore images and sounds, and that read them in order: GANs, audio, video, text."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torchvision.models import video
from zoo_layers import conv, takes


class Generator(nn.Module):
    """DCGAN: a linear layer whose outputs are seen as an image, then transposed convolutions."""

    def __init__(self, latent: int = 32, width: int = 64) -> None:
        super().__init__()
        self.width = width
        self.first = nn.Linear(latent, 4 * width * 16)
        w = (4 * width, 2 * width, width)
        self.norm = nn.BatchNorm2d(w[0])
        self.up = nn.Sequential(
            *(
                nn.Sequential(nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in zip(w[:-1], w[1:], strict=True)
            ),
            nn.ConvTranspose2d(width, 3, 4, 2, 1),
        )

    def forward(self, z: Tensor) -> Tensor:
        x = self.first(z).view(-1, 4 * self.width, 4, 4)
        return self.up(F.relu(self.norm(x))).tanh()


class ResidualBlock(nn.Module):
    """EDSR's block (no norm, scaled), or SRGAN's (norm and PReLU)."""

    def __init__(self, width: int, norm: bool, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        parts = [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width) if norm else nn.Identity()]
        act = nn.PReLU(width) if norm else nn.ReLU()
        more = [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width) if norm else nn.Identity()]
        self.body = nn.Sequential(*parts, act, *more)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) * self.scale


class DenseBlock(nn.Module):
    """ESRGAN's residual dense block: each convolution sees all before it."""

    def __init__(self, width: int, growth: int = 16) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width + i * growth, growth, 3, padding=1) for i in range(4))
        self.last = nn.Conv2d(width + 4 * growth, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for layer in self.convs:
            found.append(F.leaky_relu(layer(torch.cat(found, 1)), 0.2))
        return x + 0.2 * self.last(torch.cat(found, 1))


class SuperResolution(nn.Module):
    """A trunk of blocks with one long skip, then pixel shuffles."""

    def __init__(self, blocks: list[nn.Module], width: int, steps: int = 2) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.blocks = nn.Sequential(*blocks)
        ups = [(nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.ReLU()) for _ in range(steps)]
        self.up = nn.Sequential(*(layer for up in ups for layer in up), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.up(x + self.last(self.blocks(x)))


class CRNN(nn.Module):
    """Text recognition: convolutions, the height folded into the channels, two bidirectional LSTMs."""

    def __init__(self, hidden: int = 48) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv(1, 32), nn.MaxPool2d(2), conv(32, 64), nn.MaxPool2d(2), conv(64, 96), nn.MaxPool2d((2, 1))
        )
        self.lstm = nn.LSTM(96 * 4, hidden, 2, bidirectional=True)
        self.head = nn.Linear(2 * hidden, 37)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        b, c, h, w = x.shape
        x, _ = self.lstm(x.reshape(b, c * h, w).permute(2, 0, 1))
        return self.head(x)


class Demucs(nn.Module):
    """Source separation: strided convolutions and GLUs, an LSTM in the middle, skips by addition on the way back."""

    def __init__(self, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        w = [width * 2**i for i in range(depth)]
        self.encoder = nn.ModuleList(
            nn.Sequential(nn.Conv1d(a, b, 8, 4, 2), nn.ReLU(), nn.Conv1d(b, 2 * b, 1), nn.GLU(1))
            for a, b in zip((2, *w[:-1]), w, strict=True)
        )
        self.lstm = nn.LSTM(w[-1], w[-1], 2, bidirectional=True)
        self.mix = nn.Linear(2 * w[-1], w[-1])
        self.decoder = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(b, 2 * b, 3, padding=1),
                nn.GLU(1),
                nn.ConvTranspose1d(b, a, 8, 4, 2),
                nn.ReLU() if i else nn.Identity(),
            )  # fmt: skip
            for i, (a, b) in enumerate(zip((8, *w[:-1]), w, strict=True))
        )

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
        x, _ = self.lstm(x.permute(2, 0, 1))
        x = self.mix(x).permute(1, 2, 0)
        for block in reversed(self.decoder):
            x = block(x + skips.pop())
        return x.view(x.shape[0], 4, 2, -1)


class WaveNet(nn.Module):
    """Dilated convolutions under weight_norm, gates, residual and skip halves of one convolution."""

    def __init__(self, width: int = 32, layers: int = 6) -> None:
        super().__init__()
        self.width = width
        self.first = nn.Conv1d(1, width, 1)
        self.dilated = nn.ModuleList(
            weight_norm(nn.Conv1d(width, 2 * width, 3, padding=2**i, dilation=2**i)) for i in range(layers)
        )
        self.split = nn.ModuleList(weight_norm(nn.Conv1d(width, 2 * width, 1)) for _ in range(layers))
        self.last = nn.Sequential(nn.ReLU(), nn.Conv1d(width, width, 1), nn.ReLU(), nn.Conv1d(width, 30, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.first(x), None
        for dilated, split in zip(self.dilated, self.split, strict=True):
            a, b = dilated(x).split(self.width, 1)
            residual, skip = split(a.tanh() * b.sigmoid()).chunk(2, 1)
            x = x + residual
            total = skip if total is None else total + skip
        return self.last(total)


class ConvLSTM(nn.Module):
    """A convolutional LSTM over frames; its states are made by the forward, of the cell's own width."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.encode = conv(3, 24)
        self.gates = nn.Conv2d(24 + width, 4 * width, 3, padding=1)
        self.head = nn.Conv2d(width, 3, 1)

    def forward(self, frames: Tensor) -> Tensor:
        b, t, _, h, w = frames.shape
        state = memory = torch.zeros(b, self.width, h, w, device=frames.device, dtype=frames.dtype)
        for i in range(t):
            gates = self.gates(torch.cat([self.encode(frames[:, i]), state], 1))
            inner, forget, outer, new = torch.split(gates, self.width, 1)
            memory = forget.sigmoid() * memory + inner.sigmoid() * new.tanh()
            state = outer.sigmoid() * memory.tanh()
        return self.head(state)


class Keywords(nn.Module):
    """Speech commands: convolutions over a spectrum, a GRU over time, the last step decides."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv1d(40, 64, 5, padding=2), nn.BatchNorm1d(64), nn.ReLU())
        self.gru, self.head = nn.GRU(64, 48, batch_first=True), nn.Linear(48, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.features(x).transpose(1, 2))[0][:, -1])


@takes(32)
def dcgan() -> nn.Module:
    return Generator()


@takes(3, 24, 24)
def srgan() -> nn.Module:
    return SuperResolution([ResidualBlock(32, norm=True) for _ in range(4)], 32)


@takes(3, 24, 24)
def edsr() -> nn.Module:
    return SuperResolution([ResidualBlock(32, norm=False, scale=0.1) for _ in range(4)], 32)


@takes(3, 24, 24)
def esrgan() -> nn.Module:
    return SuperResolution([DenseBlock(32) for _ in range(3)], 32)


@takes(1, 32, 96)
def crnn() -> nn.Module:
    return CRNN()


@takes(2, 1024)
def demucs() -> nn.Module:
    return Demucs()


@takes(1, 512)
def wavenet() -> nn.Module:
    return WaveNet()


@takes(40, 60)
def keywords() -> nn.Module:
    return Keywords()


@takes(4, 3, 24, 24)
def conv_lstm() -> nn.Module:
    return ConvLSTM()


@takes(3, 8, 64, 64)
def r3d_18() -> nn.Module:
    return video.r3d_18(weights=None)


@takes(3, 8, 64, 64)
def mc3_18() -> nn.Module:
    return video.mc3_18(weights=None)


@takes(3, 8, 64, 64)
def r2plus1d_18() -> nn.Module:
    return video.r2plus1d_18(weights=None)


@takes(3, 16, 224, 224)
def s3d() -> nn.Module:
    return video.s3d(weights=None)
