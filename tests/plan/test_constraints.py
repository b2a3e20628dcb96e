from fnmatch import fnmatchcase

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.models.resnet import BasicBlock

from sentei import cut, trace
from sentei.errors import ConfigError, PlanError
from sentei.plan import Constraints, plan_from_widths
from tests.plan.fakes import chain, graphs


def widths(graph, name, constraints):
    """All widths that the constraints leave a group, from the full one down."""
    i = [g.name for g in graph.groups].index(name)
    ladder = constraints.ladder(graph)
    return [graph.groups[i].width, *ladder.after[ladder.group == i].tolist()]


def test_groups_shrink_in_steps_of_round_to_and_narrower_ones_in_smaller_powers_of_two():
    graph = chain(40, 31, 15, 8, 7)
    assert widths(graph, "conv0", Constraints()) == [40, 32, 24, 16, 8]
    assert widths(graph, "conv1", Constraints()) == [31, 28, 24, 20, 16, 12, 8, 4]
    assert widths(graph, "conv2", Constraints()) == [15, 14, 12, 10, 8, 6, 4, 2]
    assert widths(graph, "conv3", Constraints()) == [8, 6, 4, 2]
    assert widths(graph, "conv4", Constraints()) == [7, 6, 5, 4, 3, 2, 1]
    assert widths(graph, "conv0", Constraints(round_to=1)) == list(range(40, 0, -1))


def test_a_step_that_is_no_power_of_two_falls_to_the_powers_below_it():
    assert widths(chain(48), "conv0", Constraints(round_to=12)) == [48, 36, 24, 12]
    assert widths(chain(47), "conv0", Constraints(round_to=12)) == [47, 40, 32, 24, 16, 8]
    assert widths(chain(20), "conv0", Constraints(round_to=3)) == [20, 18, 15, 12, 9, 6, 3]
    assert widths(chain(11), "conv0", Constraints(round_to=3)) == [11, 10, 8, 6, 4, 2]


@given(st.integers(16, 200), st.sampled_from((8, 16, 32, 64)), st.integers(1, 40), st.floats(0, 1))
def test_no_group_of_sixteen_or_more_gets_a_width_that_is_no_multiple_of_four(width, round_to, min_width, max_ratio):
    constraints = Constraints(round_to=round_to, min_width=min_width, max_ratio=max_ratio)
    assert all(w % 4 == 0 for w in widths(chain(width), "conv0", constraints)[1:])


def test_a_width_that_is_no_multiple_stays_allowed_as_it_is():
    assert widths(chain(42), "conv0", Constraints()) == [42, 40, 32, 24, 16, 8]


def test_units_of_several_channels_need_fewer_units_for_a_multiple():
    eight = Constraints(round_to=8)
    assert widths(chain(16, multiplicity=4), "conv0", eight) == [16, 14, 12, 10, 8, 6, 4, 2]
    assert widths(chain(16, multiplicity=8), "conv0", eight) == list(range(16, 0, -1))
    assert widths(chain(12, multiplicity=2), "conv0", Constraints()) == [12, 10, 8, 6, 4, 2]


def test_min_width_is_rounded_up_and_never_above_the_full_width():
    assert widths(chain(40), "conv0", Constraints(min_width=17)) == [40, 32, 24]
    assert widths(chain(5), "conv0", Constraints(min_width=17)) == [5]


def test_ratio_caps_by_pattern_take_the_strictest():
    graph = chain(20, 20, 20)
    constraints = Constraints(round_to=1, max_ratio={"conv*": 0.9, "conv1": 0.5})
    assert widths(graph, "conv0", constraints)[-1] == 2
    assert widths(graph, "conv1", constraints)[-1] == 10
    assert widths(graph, "conv2", Constraints(round_to=1, max_ratio={"conv1": 0.5}))[-1] == 1
    assert widths(graph, "conv2", Constraints(max_ratio=0.0)) == [20]


def test_kept_and_frozen_groups_have_no_rung():
    graph = chain(20, 20)
    assert widths(graph, "conv0", Constraints(keep=("conv[0]",))) == [20]
    assert widths(graph, "head", Constraints()) == [10]


def test_a_pattern_without_a_match_is_refused_with_the_nearest_name():
    with pytest.raises(PlanError, match="conv_0.*nearest is 'conv0'"):
        Constraints(keep=("conv_0",)).ladder(chain(20))
    with pytest.raises(PlanError, match="layer"):
        Constraints(max_ratio={"layer*": 0.5}).ladder(chain(20))


@pytest.mark.parametrize(
    "wrong",
    [
        {"round_to": 0},
        {"round_to": 8.0},
        {"min_width": 0},
        {"max_ratio": 1.2},
        {"max_ratio": {"a": -1}},
        {"keep": (1,)},
    ],
)
def test_values_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Constraints(**wrong)


@given(graphs(), st.integers(1, 20), st.integers(1, 12), st.floats(0, 1))
def test_the_rungs_of_a_group_lead_from_full_to_floor(graph, round_to, min_width, max_ratio):
    ladder = Constraints(round_to=round_to, min_width=min_width, max_ratio=max_ratio).ladder(graph)
    assert np.array_equal(ladder.without(np.arange(len(ladder.group))), ladder.floor)
    assert (ladder.floor >= np.minimum(min_width, ladder.full)).all()
    assert (ladder.floor >= np.ceil(ladder.full * (1 - max_ratio) - 1e-6)).all()
    widths = ladder.full
    for _ in range(100):
        above = widths > ladder.floor
        assert np.array_equal(ladder.up(ladder.down(widths))[above], widths[above])
        widths = ladder.down(widths)
    assert np.array_equal(widths, ladder.floor)


# -- patterns speak of layers


class Residual(nn.Module):
    """Two blocks on one stream, in a container; a stem before and a head behind them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.layer1 = nn.Sequential(BasicBlock(16, 16), BasicBlock(16, 16))
        self.pool, self.hidden, self.head = nn.AdaptiveAvgPool2d(2), nn.Linear(64, 24), nn.Linear(24, 4)

    def forward(self, x):
        return self.head(self.hidden(self.pool(self.layer1(self.stem(x))).flatten(1)).relu())


@pytest.fixture(scope="module")
def residual():
    model = Residual().eval()
    return model, trace(model, torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("pattern", "whole"),
    [
        ("layer1.*", {"stem", "layer1.0.conv1", "layer1.1.conv1"}),
        ("layer1", {"stem", "layer1.0.conv1", "layer1.1.conv1"}),
        ("layer1.1", {"stem", "layer1.1.conv1"}),
        ("layer1.1.conv1", {"stem", "layer1.1.conv1"}),
        ("layer1.1.bn1", {"layer1.1.conv1"}),
        ("layer1.?.conv2", {"stem", "layer1.0.conv1", "layer1.1.conv1"}),
        ("hidden", {"stem", "hidden"}),
        ("head", {"hidden"}),
    ],
)
def test_a_pattern_keeps_every_group_that_its_layers_produce_or_read(residual, pattern, whole):
    model, graph = residual
    ladder = Constraints(keep=(pattern,)).ladder(graph)
    assert {g.name for g, f in zip(graph.groups, ladder.floor, strict=True) if f == g.width and not g.frozen} == whole
    small = cut(model, graph, plan_from_widths(graph, ladder.floor))
    before = dict(model.named_parameters())
    inside = [n for n in before if fnmatchcase(n, f"{pattern}.*")]
    assert inside
    assert all(dict(small.named_parameters())[n].shape == before[n].shape for n in inside)


def test_one_pattern_may_be_given_without_its_tuple(residual):
    assert Constraints(keep="layer1.*") == Constraints(keep=("layer1.*",))


def test_caps_speak_of_layers_too(residual):
    _, graph = residual
    ladder = Constraints(round_to=1, max_ratio={"layer1.1.conv1": 0.25}).ladder(graph)
    floors = {g.name: int(f) for g, f in zip(graph.groups, ladder.floor, strict=True) if not g.frozen}
    assert floors == {"stem": 12, "layer1.0.conv1": 1, "layer1.1.conv1": 12, "hidden": 1}


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("layer1.1.relu", "'layer1.1', held by groups 'stem' and 'layer1.1.conv1'"),
        ("layer1.1.conv1.weight", "'layer1.1.conv1', held by groups 'stem' and 'layer1.1.conv1'"),
        ("layer1.1.cnv2", "'layer1.1.conv2', held by groups 'stem' and 'layer1.1.conv1'"),
        ("hiden", "'hidden', held by groups 'stem' and 'hidden'"),
    ],
)
def test_an_unknown_layer_is_answered_with_the_group_that_holds_the_nearest(residual, wrong, text):
    with pytest.raises(PlanError, match=f"no layer with channels is named '{wrong}'; the nearest is {text}"):
        Constraints(keep=(wrong,)).ladder(residual[1])


def test_groups_that_may_shrink_are_named_exactly(residual):
    _, graph = residual
    constraints = Constraints(keep=("layer1.0.bn1",)).restricted(["layer1.0.conv1", "layer1.1.conv1"])
    ladder = constraints.ladder(graph)
    free = {g.name for g, f in zip(graph.groups, ladder.floor, strict=True) if f < g.width}
    assert free == {"layer1.1.conv1"}
    assert constraints.restricted(["stem"]).only == frozenset()


def test_wide_networks_shrink_in_steps_of_sixteen_and_keep_sixteen():
    graph = chain(256, 48, 32, 24, 12)
    assert widths(graph, "conv0", Constraints()) == list(range(256, 0, -16))
    assert widths(graph, "conv1", Constraints()) == [48, 32, 16]
    assert widths(graph, "conv2", Constraints()) == [32, 16]
    assert widths(graph, "conv3", Constraints()) == [24, 16]
    assert widths(graph, "conv4", Constraints()) == [12]
    assert widths(graph, "conv1", Constraints(round_to=8)) == [48, 40, 32, 24, 16, 8]
    narrow = chain(64, 48, 32, 24, 12)
    assert widths(narrow, "conv1", Constraints()) == widths(narrow, "conv1", Constraints(round_to=8))
