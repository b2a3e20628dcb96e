"""Random networks x random plans: a cut is exact in float64 or the groups are frozen, never silently wrong."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from sentei import Plan, check, cut, permute, trace
from sentei.errors import SurgeryError
from tests.proof import (
    assert_costs,
    assert_partition,
    outputs,
    prove,
    random_plan,
    relative_error,
    zeroed_consumers,
)
from tests.random_networks import Drawn, networks

SEEDS = st.integers(0, 2**16)
PATIENT = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
# The same examples on every run, so that CI is stable; the slow suite looks at many more, also the same each time.
QUICK = settings(max_examples=16, derandomize=True, deadline=None, database=None, suppress_health_check=PATIENT)
FEW = settings(QUICK, max_examples=8)
# No shrinking there, which can take longer than the search: `build(recipe)` gives the network of a failure.
SLOW = settings(QUICK, max_examples=600, phases=[Phase.generate])


def adds_without_weights(model: nn.Module) -> bool:
    """Attention and plain sums add up units without a weight that could be zeroed."""
    return any(isinstance(m, nn.MultiheadAttention) or getattr(m, "adds", False) for m in model.modules())


def cut_is_exact(network: Drawn, seed: int, folder: Path | None) -> None:
    model, inputs = network.model, network.inputs
    fresh = copy.deepcopy(model)  # some remember what they saw
    graph = trace(model, inputs)
    assert_partition(graph)
    assert_costs(graph, None, model, inputs)
    plan = random_plan(graph, seed)
    _, report = prove(model, graph, plan, inputs, folder)
    if not report.approximate and not adds_without_weights(model):
        by_hand = zeroed_consumers(fresh, graph, plan)
        assert relative_error(outputs(cut(fresh, graph, plan), inputs), outputs(by_hand, inputs)) < 1e-9


def order_is_free(network: Drawn, seed: int) -> None:
    """Permuting units leaves the function; the first units of the new order are the chosen ones of the old."""
    model, inputs = network.model, network.inputs
    graph = trace(model, inputs)
    rng = np.random.default_rng(seed)
    free = [g for g in graph.groups if not g.frozen and not graph.ordered(g.name)]
    order = {g.name: rng.permutation(g.width) for g in free}
    shuffled = permute(model, graph, order)
    assert relative_error(outputs(shuffled, inputs), outputs(model, inputs)) < 1e-9
    sizes = {name: int(rng.integers(1, len(units) + 1)) for name, units in order.items()}
    sizes = {name: len(kept) for name, kept in graph.bind({n: np.arange(k) for n, k in sizes.items()}).items()}
    chosen = Plan({n: order[n][:k] for n, k in sizes.items()}, graph.structure)
    first = Plan({n: np.arange(k) for n, k in sizes.items()}, graph.structure)
    a, b = cut(model, graph, chosen), cut(shuffled, graph, first)
    assert relative_error(outputs(b, inputs), outputs(a, inputs)) < 1e-9


def sabotage_is_caught(network: Drawn, seed: int) -> None:
    """A cut model with one wrong weight, two swapped channels or other units than planned does not pass."""
    model, inputs = network.model, network.inputs
    graph = trace(model, inputs)
    plan = random_plan(graph, seed, 0.5)
    small = cut(model, graph, plan)
    right = outputs(small, inputs)
    rng = np.random.default_rng(seed)
    params = [p for p in small.parameters() if p.ndim and p.numel() > 1]
    p = params[rng.integers(len(params))]
    with torch.no_grad():
        if seed % 2 and p.shape[0] > 1:
            p[[0, -1]] = p[[-1, 0]]
        else:
            p.view(-1)[int(rng.integers(p.numel()))] += 0.5
    # Behind a dead ReLU nothing changes; what does change the outputs must be caught.
    assume(relative_error(outputs(small, inputs), right) > 1e-8)
    with pytest.raises(SurgeryError):
        check(model, small, graph, plan, inputs)


@QUICK
@given(networks(), SEEDS)
def test_cut_is_exact_or_frozen(tmp_path: Path, network: Drawn, seed: int) -> None:
    cut_is_exact(network, seed, tmp_path if seed % 3 == 0 else None)


@FEW
@given(networks(), SEEDS)
def test_permuting_units_keeps_the_function(network: Drawn, seed: int) -> None:
    order_is_free(network, seed)


@FEW
@given(networks(), SEEDS)
def test_sabotage_is_caught(network: Drawn, seed: int) -> None:
    sabotage_is_caught(network, seed)


@pytest.mark.slow
@SLOW
@given(networks(), SEEDS)
def test_cut_is_exact_or_frozen_many(tmp_path: Path, network: Drawn, seed: int) -> None:
    cut_is_exact(network, seed, tmp_path if seed % 3 == 0 else None)


@pytest.mark.slow
@settings(SLOW, max_examples=300)
@given(networks(), SEEDS)
def test_permuting_units_keeps_the_function_many(network: Drawn, seed: int) -> None:
    order_is_free(network, seed)


@pytest.mark.slow
@settings(SLOW, max_examples=300)
@given(networks(), SEEDS)
def test_sabotage_is_caught_many(network: Drawn, seed: int) -> None:
    sabotage_is_caught(network, seed)
