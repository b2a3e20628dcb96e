"""Grids, rounding and budgets of the search space."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sentei
from sentei.errors import BudgetError, ConfigError
from sentei.methods.common.genes import inner_groups, searched_groups
from sentei.models import build_model, input_shape_of
from sentei.plan import Constraints, rescaler, uniform
from sentei.search import budgeted, tenths


@pytest.fixture(scope="module")
def graph():
    return sentei.trace(build_model("resnet20"), torch.zeros(1, 3, 32, 32))


def test_tenths_are_the_grid_of_the_paper(graph):
    space = tenths(graph, ["layer1.0.conv1", "layer3.2.conv1"], 0.7)
    assert [c.tolist() for c in space.choices] == [[1, 3, 4, 6, 8, 9, 11], [6, 12, 19, 25, 32, 38, 44]]
    assert space.size == 49
    widths = space.widths((0, 6))
    assert widths[graph.index("layer1.0.conv1")] == 1
    assert widths[graph.index("layer3.2.conv1")] == 44
    assert widths[graph.index("layer3.1.conv1")] == 64
    assert space.levels(widths) == (0, 6)


def test_structures_of_the_paper_cost_what_the_oracle_says(graph):
    """All genes at 7 of 10 give the published structure of ResNet-56."""
    graph = sentei.trace(build_model("resnet56"), torch.zeros(1, 3, 32, 32))
    space = tenths(graph, inner_groups(graph), 0.7)
    assert len(space) == 27
    assert int(graph.costs(space.widths((6,) * 27)).macs) == 86_409_856


@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.75, 1.1, -0.3])
def test_alpha_out_of_range_is_refused(graph, alpha):
    with pytest.raises(ConfigError, match=r"alpha is .* expected one of 0.1, 0.2"):
        tenths(graph, ["conv1"], alpha)


@given(st.integers(0, 10_000), st.floats(0.2, 0.95))
def test_any_point_is_brought_onto_the_budget(graph, seed, macs):
    names = [g.name for g in graph.groups if not g.frozen]
    space = budgeted(graph, names, sentei.Budget(macs=macs), Constraints(round_to=1))
    levels = space.random(np.random.default_rng(seed))
    assert all(0 <= level < len(c) for level, c in zip(levels, space.choices, strict=True))
    limit = macs * graph.cost().macs
    used = float(graph.costs(space.widths(levels)).macs)
    assert used <= limit
    # Short of the budget only where the next unit of any group is too large for what is left.
    wider = [(*levels[:i], level + 1, *levels[i + 1 :]) for i, level in enumerate(levels)
             if level + 1 < len(space.choices[i])]  # fmt: skip
    assert used >= 0.97 * limit or all(float(graph.costs(space.widths(one)).macs) > limit for one in wider)


def test_every_choice_of_a_default_space_is_a_multiple_of_four(graph):
    space = budgeted(graph, [g.name for g in graph.groups if not g.frozen], sentei.Budget(macs=0.5), Constraints())
    assert all((choices % 4 == 0).all() for choices in space.choices)
    for seed in range(20):
        widths = space.widths(space.random(np.random.default_rng(seed)))
        assert 0.85 <= float(graph.costs(widths).macs) / graph.cost().macs / 0.5 <= 1


def test_rescaling_full_widths_is_uniform(graph):
    budget = sentei.Budget(macs=0.5)
    assert (rescaler(graph, budget)(graph.widths()) == graph.widths(uniform(graph, budget))).all()


def test_rescaling_keeps_proportions(graph):
    free = np.array([not g.frozen for g in graph.groups])
    target = np.where(np.arange(len(free)) % 2, 0.4, 1.0) * graph.widths()
    found = rescaler(graph, sentei.Budget(macs=0.5), Constraints(round_to=1))(target)
    ratio = (found / target)[free & (graph.widths() > 16)]
    whole = (found == graph.widths())[free & (graph.widths() > 16)]
    assert np.ptp(ratio[~whole]) < 0.15


def test_constraints_and_kept_groups_hold(graph):
    names = [g.name for g in graph.groups if not g.frozen]
    space = budgeted(graph, names, sentei.Budget(macs=0.6), Constraints(round_to=4, max_ratio=0.6, keep=("conv1",)))
    assert "conv1" not in space.names
    for seed in range(20):
        widths = space.widths(space.random(np.random.default_rng(seed)))
        full = graph.widths()
        assert (widths >= 0.4 * full - 1e-9).all()
        assert (widths[full >= 16] % 4 == 0).all()


def test_a_budget_below_the_smallest_structure_is_refused(graph):
    with pytest.raises(BudgetError, match="smallest reachable"):
        budgeted(graph, inner_groups(graph), sentei.Budget(macs=0.01), Constraints())


def test_groups_outside_the_genes_stay_whole(graph):
    space = budgeted(graph, inner_groups(graph), sentei.Budget(macs=0.5), Constraints())
    widths = space.widths(space.random(np.random.default_rng(0)))
    outside = [i for i, g in enumerate(graph.groups) if g.name not in space.names]
    assert (widths[outside] == graph.widths()[outside]).all()


def test_names_with_pattern_characters_are_taken_literally():
    net = torch.nn.Sequential()
    net.add_module("a[0]", torch.nn.Conv2d(3, 16, 3))
    net.add_module("b*", torch.nn.Conv2d(16, 16, 3))
    net.add_module("c", torch.nn.Conv2d(16, 4, 3))
    graph = sentei.trace(net, torch.zeros(1, 3, 16, 16))
    space = budgeted(graph, ["b*"], sentei.Budget(macs=0.7), Constraints(round_to=1))
    assert space.widths(space.random(np.random.default_rng(0)))[graph.index("a[0]")] == 16


@pytest.mark.parametrize(
    ("name", "inner", "streams"),
    [
        ("resnet56", 27, {"conv1"}),
        ("vgg16", 13, set()),
        ("densenet40", 39, set()),
        ("torchvision:resnet50", 33, {"layer1.0.conv3", "layer2.0.conv3", "layer3.0.conv3", "layer4.0.conv3"}),
        ("digitsnet", 2, {"conv1"}),
    ],
)
def test_inner_groups_leave_residual_streams_out(name, inner, streams):
    graph = sentei.trace(build_model(name), torch.zeros(1, *input_shape_of(name)))
    found = inner_groups(graph)
    assert len(found) == inner
    assert {g.name for g in graph.groups if not g.frozen} - set(found) == streams


def test_depthwise_convolutions_and_gates_are_inside_their_branch():
    graph = sentei.trace(build_model("torchvision:mobilenet_v3_small"), torch.zeros(1, 3, 64, 64))
    found = inner_groups(graph)
    assert "features.4.block.0.0" in found  # expanded, depthwise, gated by squeeze and excitation
    assert "features.4.block.3.0" not in found  # joined by an addition


def test_no_group_to_search_is_said():
    graph = sentei.trace(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1)), torch.zeros(1, 3, 4, 4))
    with pytest.raises(ConfigError, match="no group of this network can be searched: reaches the network output"):
        searched_groups(graph, "all")
    with pytest.raises(ConfigError, match="expected 'inner' or 'all'"):
        searched_groups(graph, "some")
