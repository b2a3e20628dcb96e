"""The peak of live activations: counted by hand, and the same before a cut as after it."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import sentei
from sentei import cut, trace
from tests.proof import random_plan
from tests.random_networks import conv

IMAGE = torch.zeros(1, 3, 8, 8)
PIXELS = 4 * 64


class Net(nn.Module):
    def __init__(self, forward: Callable[[nn.Module, Tensor], object]) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 8)
        self._forward = forward

    def forward(self, x: Tensor) -> object:
        return self._forward(self, x)


@pytest.mark.parametrize(
    ("forward", "channels"),
    [
        pytest.param(lambda net, x: net.b(net.a(x)), 16, id="chain"),
        pytest.param(lambda net, x: net.b(net.a(x).relu_()), 16, id="in place"),
        pytest.param(lambda net, x: net.b(net.a(x).relu()), 16, id="out of place"),
        pytest.param(lambda net, x: (y := net.a(x)) + net.b(y), 24, id="residual"),
        pytest.param(lambda net, x: net.b(net.a(x)[:, :, :8]), 16, id="a view is no copy"),
        pytest.param(lambda net, x: [y := net.a(x), net.b(y).mean((2, 3))], 16 + 8 / 64, id="outputs stay"),
        pytest.param(lambda net, x: net.b(net.a(x)).sum((1, 2, 3)) + x.sum((1, 2, 3)), 19, id="the input is read late"),
    ],
)
def test_by_hand(forward: Callable[[nn.Module, Tensor], object], channels: float) -> None:
    assert trace(Net(forward), IMAGE).cost().memory == PIXELS * channels


def test_a_batch_and_a_precision_count() -> None:
    net = Net(lambda net, x: net.b(net.a(x)))
    one = trace(net, IMAGE).cost().memory
    assert trace(net, torch.zeros(5, 3, 8, 8)).cost().memory == 5 * one
    assert trace(net.double(), IMAGE.double()).cost().memory == 2 * one


@given(st.integers(0, 1000))
def test_the_peak_of_a_plan_is_that_of_the_cut_network(seed: int) -> None:
    net = Net(lambda net, x: torch.cat([y := net.a(x).relu(), net.b(y) + y], 1).mean((2, 3)))
    graph = trace(net, IMAGE)
    plan = random_plan(graph, seed)
    assert graph.cost(plan).memory == trace(cut(net, graph, plan), IMAGE).cost().memory


def test_a_budget_of_memory_holds() -> None:
    net = nn.Sequential(conv(3, 32), nn.ReLU(), conv(32, 16), nn.ReLU(), conv(16, 4))
    graph = trace(net, IMAGE)
    plan = sentei.uniform(graph, sentei.Budget(memory=0.5), constraints=sentei.Constraints(round_to=1))
    assert 0.4 * graph.cost().memory < graph.cost(plan).memory <= 0.5 * graph.cost().memory
