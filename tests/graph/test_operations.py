"""Operations between convolutions: what shrinks, and that every cut is what the silenced network computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import ops

from sentei import check, cut, slim, trace
from tests.proof import outputs, random_plan, relative_error, same_bits, zeroed_consumers

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
BOXES = torch.tensor([[0.0, 1, 1, 6, 6], [1, 0, 0, 5, 7]], dtype=torch.float64)
Middle = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """A convolution, an operation on 12 channels, and a convolution."""

    def __init__(self, middle: Middle, **modules: nn.Module) -> None:
        super().__init__()
        self.a, self.o, self.middle = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 4, 1), middle
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.middle(self, F.relu(self.a(x))))


def prove_free(model: nn.Module, free: dict[str, int], x: Tensor = IMAGE, exact: bool = True) -> None:
    """The named groups are free and have so many units; cuts are right. `exact`: channels are mixed by weights only."""
    torch.manual_seed(0)
    for p in model.parameters():
        p.data = torch.randn_like(p) * (0.3 if p.ndim > 1 else 1)
    model = model.double().eval()
    graph = trace(model, x)
    for name, width in free.items():
        group = graph.group(name)
        assert (group.why, group.width) == (None, width)
    for seed in range(3):
        plan = random_plan(graph, seed)
        small = cut(model, graph, plan)
        report = check(model, small, graph, plan, x)
        assert report.max_error < 1e-9
        assert bool(report.approximate) is not exact or not exact
        with slim(model, graph, plan) as subnet:
            assert same_bits(outputs(subnet, (x,)), outputs(small, (x,)))
        if exact:
            silenced = zeroed_consumers(model, graph, plan)
            assert relative_error(outputs(small, (x,)), outputs(silenced, (x,))) < 1e-9


# -- unpooling and images made of vectors


class Unpool(nn.Module):
    def __init__(self, kind: int) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[kind - 1]
        self.pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[kind - 1](2, return_indices=True)
        self.unpool = (nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d)[kind - 1](2)
        self.a, self.b, self.c = conv(3, 8, 3, padding=1), conv(8, 8, 3, padding=1), conv(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y, where = self.pool(F.relu(self.a(x)))
        return self.c(self.unpool(F.relu(self.b(y)), where, output_size=x.shape[2:]))


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_unpooling_follows_its_indices(kind: int) -> None:
    prove_free(Unpool(kind), {"a": 8}, torch.randn(2, 3, *[7] * kind, dtype=torch.float64))


class Stem(nn.Module):
    """A vector becomes an image."""

    def __init__(self, view: Callable[[Tensor], Tensor], space: int) -> None:
        super().__init__()
        conv = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[space - 1]
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[space - 1]
        self.l, self.n, self.c = nn.Linear(8, 6 * 4**space), norm(6), conv(6, 5, 4, 2, 1)
        self.o, self.view = conv(5, 3, 1), view

    def forward(self, z: Tensor) -> Tensor:
        return self.o(F.relu(self.c(F.relu(self.n(self.view(self.l(z)))))))


@pytest.mark.parametrize(
    ("view", "space"),
    [
        (lambda y: y.view(len(y), -1, 4), 1),
        (lambda y: y.view(len(y), -1, 4, 4), 2),
        (lambda y: y.reshape(-1, y.shape[1] // 16, 4, 4), 2),
        (lambda y: y.view(len(y), 4, 4, -1).permute(0, 3, 1, 2), 2),
        (lambda y: y.view(len(y), -1, 4, 4, 4), 3),
    ],
)
def test_a_vector_becomes_an_image(view: Callable[[Tensor], Tensor], space: int) -> None:
    prove_free(Stem(view, space), {"l": 6, "c": 5}, torch.randn(2, 8, dtype=torch.float64))


# -- torchvision


class Deformed(nn.Module):
    """Offsets and masks of their own; all channels or each of some groups of channels share them."""

    def __init__(self, groups: int, parts: int, masked: bool) -> None:
        super().__init__()
        self.off = nn.Conv2d(12, (27 if masked else 18) * parts, 3, padding=1)
        self.d = ops.DeformConv2d(12, 12, 3, padding=1, groups=groups)
        self.d.reads = ("weight.1",)
        self.split, self.masked = 18 * parts, masked

    def forward(self, x: Tensor) -> Tensor:
        steer = self.off(x)
        mask = steer[:, self.split :].sigmoid() if self.masked else None
        return self.d(x, steer[:, : self.split].tanh(), mask)


@pytest.mark.parametrize(("groups", "parts", "width"), [(1, 1, 12), (1, 3, 4), (3, 1, 4)])
@pytest.mark.parametrize("masked", [True, False])
def test_deformable_convolution(groups: int, parts: int, width: int, masked: bool) -> None:
    model = Net(lambda net, x: net.m(x), m=Deformed(groups, parts, masked))
    prove_free(model, {"a": width, "m.d": 12 if groups == 1 else 4})
    graph = trace(model, IMAGE)
    small = cut(model, graph, random_plan(graph, 0, 0.5))
    assert small.m.d.in_channels == small.a.out_channels == 6
    assert small.m.d.out_channels == small.o.in_channels == 6
    bare = trace(Net(lambda net, x: x), IMAGE.float()).cost().macs
    whole = graph.cost().macs - bare
    assert whole == 2 * 64 * 9 * 12 * ((27 if masked else 18) * parts + 12 // groups)


class Regions(nn.Module):
    def __init__(self, pool: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.l, self.pool = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 10, 3), nn.Linear(90, 3), pool

    def forward(self, x: Tensor) -> Tensor:
        return self.l(self.pool(self.b(F.relu(self.a(x))), BOXES.to(x), (3, 3)).flatten(1))


@pytest.mark.parametrize("pool", [ops.roi_align, ops.roi_pool])
def test_regions_of_interest(pool: Callable[..., Tensor]) -> None:
    prove_free(Regions(pool), {"a": 12, "b": 10})


# -- patches


def folded(net: Net, x: Tensor) -> Tensor:
    return F.fold(F.unfold(x, 3, padding=1), x.shape[-2:], 3, padding=1)


def patches_through_a_layer(net: Net, x: Tensor) -> Tensor:
    patches = net.l(F.unfold(x, 2, stride=2).transpose(1, 2)).transpose(1, 2)
    return F.fold(patches, x.shape[-2:], 2, stride=2)


def test_fold() -> None:
    prove_free(Net(folded), {"a": 12})


def test_fold_of_what_a_layer_computes() -> None:
    prove_free(Net(patches_through_a_layer, l=nn.Linear(48, 48)), {"a": 12, "l": 12})


# -- Fourier transforms


def spectrum(net: Net, x: Tensor) -> Tensor:
    f = torch.fft.rfft2(x, norm="ortho")
    return torch.fft.irfft2(f * f.abs().sigmoid(), s=x.shape[-2:], norm="ortho")


def stacked_parts(net: Net, x: Tensor) -> Tensor:
    """Fast Fourier convolution: real and imaginary parts are channels."""
    n, _, h, w = x.shape
    f = torch.fft.rfftn(x, dim=(-2, -1))
    f = torch.stack((f.real, f.imag), 2).reshape(n, -1, h, w // 2 + 1)
    f = F.relu(net.f(f)).reshape(n, -1, 2, h, w // 2 + 1).permute(0, 1, 3, 4, 2).contiguous()
    return torch.fft.irfftn(torch.complex(f[..., 0], f[..., 1]), s=(h, w), dim=(-2, -1))


def viewed_as_real(net: Net, x: Tensor) -> Tensor:
    f = torch.view_as_real(torch.fft.rfft2(x))
    return torch.fft.irfft2(torch.view_as_complex(F.relu(f).contiguous()), s=x.shape[-2:])


def many_transforms(net: Net, x: Tensor) -> Tensor:
    shifted = torch.fft.fftshift(torch.fft.fft2(x), dim=(2, 3)).abs().log1p()
    product = torch.fft.rfft2(x).conj() * torch.fft.rfft2(x.flip(2))
    return shifted + torch.fft.ifft(x, dim=-1).imag + torch.fft.irfft2(product, s=x.shape[-2:])


@pytest.mark.parametrize("middle", [spectrum, viewed_as_real, many_transforms])
def test_fourier_along_space(middle: Middle) -> None:
    prove_free(Net(middle), {"a": 12})


class Filter(nn.Module):
    """A global filter: a complex parameter for each channel and frequency."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(12, 8, 5, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * self.w, s=x.shape[-2:])


class SpectralMixer(nn.Module):
    """Channels mix with complex weights, one for each of the lowest frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(12, 12, 3, 3, dtype=torch.complex128))
        self.reads = ("weight.0",)

    def forward(self, x: Tensor) -> Tensor:
        low = torch.einsum("bixy,ioxy->boxy", torch.fft.rfft2(x)[:, :, :3, :3], self.w)
        return torch.fft.irfft2(low, s=x.shape[-2:])


def test_complex_parameters() -> None:
    for module in (Filter(), SpectralMixer()):
        model = Net(lambda net, x: net.m(x), m=module).eval()
        for p in model.parameters():
            p.data = p.data if p.is_complex() else p.data.double()
        graph = trace(model, IMAGE)
        assert "m.w" in {m.param for g in graph.groups if not g.frozen for m in g.members}
        for seed in range(3):
            plan = random_plan(graph, seed)
            small = cut(model, graph, plan)
            assert check(model, small, graph, plan, IMAGE).max_error < 1e-9
            assert graph.cost(plan).params == sum(p.numel() for p in small.parameters())


def test_fourier_convolution() -> None:
    prove_free(Net(stacked_parts, f=nn.Conv2d(24, 24, 1)), {"a": 12, "f": 12})


def test_fourier_along_channels_is_refused() -> None:
    why = trace(Net(lambda net, x: torch.fft.fft(x, dim=1).real), IMAGE.float()).group("a").why
    assert why == "is mixed along its channels by aten._fft_r2c"


# -- statistics by hand


def statistics(net: Net, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    y = x.view(n, 3, c // 3, h, w)
    mean, var = y.mean((2, 3, 4), keepdim=True), y.var((2, 3, 4), keepdim=True)
    return ((y - mean) / (var + 1e-5).sqrt()).view(n, c, h, w)


def flat_statistics(net: Net, x: Tensor) -> Tensor:
    y = x.view(len(x), 3, -1)
    return ((y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True) + 1e-5).sqrt()).view(x.shape)


def statistics_of_instances(net: Net, x: Tensor) -> Tensor:
    return F.batch_norm(x.reshape(1, len(x) * 3, -1), None, None, training=True).view(x.shape)


@pytest.mark.parametrize("middle", [statistics, flat_statistics, statistics_of_instances])
def test_statistics_of_groups(middle: Middle) -> None:
    prove_free(Net(middle), {"a": 4}, exact=False)
