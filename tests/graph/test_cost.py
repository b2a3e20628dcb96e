"""Cost without cutting: counted by hand on a small network, and for many widths at once."""

import numpy as np
import pytest
import torch
from torch import nn

from sentei import Budget, Cost, Plan, cut, trace, uniform
from sentei.models import build_model
from tests.proof import assert_costs, random_plan
from tests.random_networks import conv


def test_by_hand() -> None:
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), conv(8, 4, stride=2), nn.Flatten(), nn.Linear(64, 5))
    graph = trace(model, torch.zeros(1, 3, 8, 8))
    macs = 64 * 9 * 3 * 8 + 16 * 9 * 8 * 4 + 64 * 5
    params = (9 * 3 * 8 + 8) + 16 + (9 * 8 * 4 + 4) + (64 * 5 + 5)
    assert graph.cost() == Cost(macs, params, 4 * (64 * 8 + 16 * 4 + 5), memory=4 * 2 * 64 * 8)
    half = Plan({"0": np.arange(0, 8, 2), "2": [3]})
    left = 64 * 9 * 3 * 4 + 16 * 9 * 4 + 80, 112 + 8 + 37 + 85, 4 * (64 * 4 + 16 + 5)
    assert graph.cost(half) == Cost(*left, memory=4 * 2 * 64 * 4)


def test_grouped_depthwise_and_transposed_by_hand() -> None:
    model = nn.Sequential(
        conv(3, 8), conv(8, 8, groups=8), conv(8, 12, groups=4), nn.ConvTranspose2d(12, 4, 2, 2), conv(4, 2)
    )
    x = torch.zeros(2, 3, 8, 8)
    graph = trace(model, x)
    each = [64 * 9 * 24, 64 * 9 * 8, 64 * 9 * 12 * 2, 64 * 4 * 12 * 4, 256 * 9 * 8]
    assert graph.cost().macs == 2 * sum(each)
    for seed in range(5):
        plan = random_plan(graph, seed)
        assert_costs(graph, plan, cut(model, graph, plan), (x,))


def test_many_widths_at_once() -> None:
    graph = trace(nn.Sequential(conv(3, 8), conv(8, 6), conv(6, 2)), torch.zeros(1, 3, 8, 8))
    plans = [random_plan(graph, s) for s in range(20)]
    widths = np.stack([graph.widths(p) for p in plans])
    batch = graph.costs(widths.reshape(4, 5, -1))
    assert batch.macs.shape == (4, 5)
    for name in ("macs", "params", "activation_bytes", "memory"):
        assert getattr(batch, name).ravel().tolist() == [getattr(graph.cost(p), name) for p in plans]


def test_tied_parameters_count_once() -> None:
    a, b = conv(4, 4), conv(4, 4)
    b.weight = a.weight
    graph = trace(nn.Sequential(conv(3, 4), a, b, conv(4, 2)), torch.zeros(1, 3, 8, 8))
    assert graph.cost().params == 112 + 144 + 8 + 74
    assert graph.cost().macs == 64 * 9 * (12 + 16 + 16 + 8)


def test_shared_module_counts_parameters_once_and_macs_twice() -> None:
    a = conv(4, 4)
    graph = trace(nn.Sequential(conv(3, 4), a, nn.ReLU(), a, conv(4, 2)), torch.zeros(1, 3, 8, 8))
    assert graph.cost().macs == 64 * 9 * (12 + 16 + 16 + 8)
    assert graph.cost().params == 112 + 148 + 74


@pytest.mark.parametrize("frozen_head", [True, False])
def test_prunable_shares(frozen_head: bool) -> None:
    layers = [conv(3, 8), conv(8, 4)] if frozen_head else [conv(3, 8)]
    macs, params = trace(nn.Sequential(*layers), torch.zeros(1, 3, 8, 8)).prunable()
    if frozen_head:  # all but the bias of the last layer
        assert macs == 1
        assert params == pytest.approx(1 - 4 / (224 + 292))
    else:
        assert (macs, params) == (0, 0)


def test_macs_by_layer_are_the_parts_of_the_cost():
    model = build_model("resnet20")
    graph = trace(model, torch.zeros(1, 3, 32, 32))
    plan = uniform(graph, Budget(macs=0.5))
    for given in (None, plan):
        layers = graph.macs_by_layer(given)
        assert sum(layers.values()) == graph.cost(given).macs
        assert list(layers)[0] == "conv1"
        assert list(layers)[-1] == "linear"
    small = graph.macs_by_layer(plan)
    assert all(small[name] <= macs for name, macs in graph.macs_by_layer().items())
