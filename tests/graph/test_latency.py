"""Milliseconds as a column of the costs: by hand, for times that are given."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from sentei import Budget, ChannelGraph, Plan, cut, trace, uniform
from sentei.errors import ConfigError, PlanError
from sentei.graph.latency import axes
from sentei.plan import Constraints
from tests.random_networks import conv


@dataclass(frozen=True)
class Given:
    coefficients: np.ndarray
    step: int = 1
    scale: float = 1.0
    per_byte: float = 0.0
    constant: float = 0.0


def graph_of(*widths: int) -> tuple[nn.Module, ChannelGraph]:
    layers = [conv(a, b) for a, b in zip((3, *widths), (*widths, 5), strict=True)]
    net = nn.Sequential(*layers)
    return net, trace(net, torch.zeros(1, 3, 4, 4))


def test_by_hand() -> None:
    _, graph = graph_of(8, 6)
    assert [len(axes(c)) for c in graph.trace_record.contractions] == [2, 2, 2]
    # Alone, for each output, for each input, for each pair.
    times = np.array([[1.0, 0.5, 0, 0], [0, 0, 0, 0.25], [2.0, 0, 0.125, 0]])
    timed = graph.with_latency(Given(times, scale=2.0, per_byte=0.001, constant=0.5))
    plan = Plan({"0": range(4), "1": range(2)})
    written = 4 * 16 * (4 + 2 + 5)
    layers = (1 + 0.5 * 4) + 0.25 * 2 * 4 + (2 + 0.125 * 2)
    assert timed.cost(plan).latency_ms == pytest.approx(2 * layers + 0.001 * written + 0.5)
    assert graph.cost().latency_ms is None
    assert timed.cost(plan).macs == graph.cost(plan).macs
    parts = timed.costs_of.parts("latency_ms", timed.widths(plan))
    assert parts.shape == (3,)
    assert parts.sum() == pytest.approx(timed.cost(plan).latency_ms)


def test_kernels_compute_in_steps() -> None:
    _, graph = graph_of(20, 6)
    timed = graph.with_latency(Given(np.array([[0, 1.0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]), step=8))
    widths = [np.where(timed.widths() == 20, n, timed.widths()) for n in (20, 17, 16, 15, 9, 8, 1)]
    # Never more than the full width costs.
    assert timed.costs(np.stack(widths)).latency_ms.tolist() == [20, 20, 16, 16, 16, 8, 8]


def test_times_hold_for_a_network_that_was_cut() -> None:
    net, graph = graph_of(8, 6)
    times = Given(np.abs(np.random.default_rng(0).normal(size=(3, 4))), scale=0.7, per_byte=0.002, constant=1.0)
    plan = Plan({"0": [0, 2, 3], "1": [5]})
    small = trace(cut(net, graph, plan), torch.zeros(1, 3, 4, 4)).with_latency(times)
    assert small.cost().latency_ms == pytest.approx(graph.with_latency(times).cost(plan).latency_ms)


def test_times_of_another_network_are_refused() -> None:
    _, graph = graph_of(8, 6)
    with pytest.raises(PlanError, match="they know 2 layers, and this graph has 3"):
        graph.with_latency(Given(np.zeros((2, 4))))


def test_milliseconds_without_times_are_refused() -> None:
    _, graph = graph_of(8, 6)
    with pytest.raises(PlanError, match="no measured times"):
        graph.costs(graph.widths()).latency_ms  # noqa: B018
    with pytest.raises(ConfigError, match="no measured times"):
        uniform(graph, Budget(latency=0.5))


def test_a_budget_of_milliseconds_holds() -> None:
    _, graph = graph_of(32, 32)
    times = Given(np.array([[0.1, 0.05, 0, 0], [0.1, 0.01, 0.01, 0.02], [0.1, 0, 0.05, 0]]))
    timed = graph.with_latency(times)
    full = timed.cost().latency_ms
    assert full is not None
    plan = uniform(timed, Budget(latency=0.5), constraints=Constraints(round_to=1))
    assert 0.45 * full < (timed.cost(plan).latency_ms or 0) <= 0.5 * full
    absolute = uniform(timed, Budget(latency_ms=0.5 * full), constraints=Constraints(round_to=1))
    assert plan == absolute
