"""Tensors that the forward makes: zeros of the size of an activation, statistics expanded to it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sentei import trace
from tests.proof import outputs, prove, random_plan, relative_error, zeroed_consumers

CLIP = torch.randn(2, 3, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
IMAGE = CLIP[:, 0]


def prove_all(model: nn.Module, x: Tensor, exact: bool = True) -> None:
    model = model.double().eval()
    graph = trace(model, x)
    for seed in range(4):
        plan = random_plan(graph, seed)
        small, report = prove(model, graph, plan, (x,))
        assert report.max_error < 1e-9
        if exact:
            silenced = zeroed_consumers(model, graph, plan)
            assert relative_error(outputs(small, (x,)), outputs(silenced, (x,))) < 1e-9


class ConvGRU(nn.Module):
    """A recurrent convolution over frames, whose first state is made by hand."""

    def __init__(self, start: Callable[[Tensor, list[int]], Tensor], frames: int) -> None:
        super().__init__()
        self.a, self.o = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.gates, self.new = nn.Conv2d(14, 16, 3, padding=1), nn.Conv2d(14, 8, 3, padding=1)
        self.start, self.frames = start, frames

    def forward(self, clip: Tensor) -> Tensor:
        h = None
        for t in range(self.frames):
            x = F.relu(self.a(clip[:, t]))
            if h is None:
                h = self.start(x, [len(x), self.new.out_channels, *x.shape[2:]])
            z, r = self.gates(torch.cat([x, h], 1)).sigmoid().chunk(2, 1)
            h = (1 - z) * h + z * torch.tanh(self.new(torch.cat([x, r * h], 1)))
        return self.o(h)


STARTS = {
    "zeros": lambda x, size: torch.zeros(size, dtype=x.dtype, device=x.device),
    "new_zeros": lambda x, size: x.new_zeros(size),
    "moved": lambda x, size: torch.zeros(*size).to(x),
    "full": lambda x, size: torch.full(size, 0.5, dtype=x.dtype, device=x.device),
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("frames", [1, 3])
def test_first_states_made_by_hand(start: str, frames: int) -> None:
    model = ConvGRU(STARTS[start], frames)
    assert [g.name for g in trace(model, CLIP.float()).groups if g.frozen] == ["o"]
    prove_all(model, CLIP)


def test_a_made_tensor_of_a_fixed_size_freezes() -> None:
    """Eight zeros stay eight."""
    model = ConvGRU(lambda x, size: torch.zeros(size[0], 8, *size[2:], dtype=x.dtype, device=x.device), 2)
    graph = trace(model, CLIP.float())
    assert graph.group("gates").frozen
    prove_all(model, CLIP)


class Refined(nn.Module):
    """Its first state has the size of the features, and is then a layer's output: both keep equally many channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(2 * width, width, 3, padding=1)
        self.o = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        h = torch.zeros(y.shape, dtype=y.dtype, device=y.device)
        for _ in range(2):
            h = F.relu(self.b(torch.cat([y, h], 1)))
        return self.o(h)


@pytest.mark.parametrize("width", [4, 6, 8, 12])
def test_a_state_of_the_size_of_the_features(width: int) -> None:
    model = Refined(width)
    graph = trace(model, IMAGE.float())
    assert not graph.group("a").frozen
    assert not graph.group("b").frozen
    prove_all(model, IMAGE, exact=False)


class Body(nn.Module):
    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.o, self.middle = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 4, 1), middle

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.middle(F.relu(self.a(x))))


def added(x: Tensor) -> Tensor:
    return x + torch.ones(1, x.shape[1], 1, 1, dtype=x.dtype, device=x.device)


def shifted(x: Tensor) -> Tensor:
    """Written into, so what is written counts."""
    out = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    out[:, :, 1:] = x[:, :, :-1]
    return out


def functional_norm(x: Tensor) -> Tensor:
    zeros, ones = torch.zeros(x.shape[1], dtype=x.dtype), torch.ones(x.shape[1], dtype=x.dtype)
    return F.batch_norm(x, zeros.to(x), ones.to(x))


def flattened(x: Tensor) -> Tensor:
    """Labels that a made tensor has along space are in nobody's way."""
    y = x + torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    return y.flatten(1).reshape(x.shape)


@pytest.mark.parametrize("middle", [added, shifted, functional_norm, flattened])
def test_made_tensors_follow(middle: Callable[[Tensor], Tensor]) -> None:
    model = Body(middle)
    assert not trace(model, IMAGE.float()).group("a").frozen
    prove_all(model, IMAGE)


def evo_norm(groups: int) -> Callable[[Tensor], Tensor]:
    """Each group is divided by its deviation, which is expanded to the size of the input."""

    def norm(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = x.reshape(n, groups, c // groups, h, w)
        std = (y.var((2, 3, 4), keepdim=True) + 1e-5).sqrt().expand_as(y).reshape(n, c, h, w)
        return x * torch.sigmoid(x) / std

    return norm


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_evo_norm(groups: int) -> None:
    model = Body(evo_norm(groups))
    group = trace(model, IMAGE.float()).group("a")
    assert (group.why, group.width) == (None, 12 // groups)
    prove_all(model, IMAGE, exact=False)
