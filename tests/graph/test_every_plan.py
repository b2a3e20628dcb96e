"""After `trace`, every plan of unfrozen groups is a right cut: plans of random networks, none of them sorted out."""

import random

import numpy as np
import pytest

from sentei import ChannelGraph, Plan, trace
from tests.proof import alike, assert_right, state
from tests.random_networks import build

PLANS = 5


def any_plan(graph: ChannelGraph, seed: int) -> Plan:
    """Any widths from one unit on; in every third plan the ends of the range: one, half, all."""
    rng = np.random.default_rng(seed)
    keep = {}
    for g in graph.groups:
        if not g.frozen:
            width = rng.integers(1, g.width + 1) if seed % 3 else rng.choice([1, max(1, g.width // 2), g.width])
            keep[g.name] = rng.permutation(g.width)[: int(width)]
    return Plan(graph.bind(keep), graph.structure)


def every_plan_is_right(seed: int) -> None:
    numbers = random.Random(seed)
    network = build([numbers.randrange(1000) for _ in range(60)])
    before = state(network.model)
    graph = trace(network.model, network.inputs)
    assert alike(state(network.model), before)
    for k in range(PLANS):
        assert_right(network.model, graph, any_plan(graph, PLANS * seed + k), network.inputs)


@pytest.mark.parametrize("seed", range(30, 48))
def test_every_plan_is_a_right_cut(seed: int) -> None:
    every_plan_is_right(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [*range(30), *range(48, 700)])
def test_every_plan_is_a_right_cut_many(seed: int) -> None:
    every_plan_is_right(seed)
