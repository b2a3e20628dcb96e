import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentei.errors import ConfigError, PlanError
from sentei.plan import Constraints
from tests.plan.fakes import chain, graphs


def widths(graph, name, constraints):
    """All widths that the constraints leave a group, from the full one down."""
    i = [g.name for g in graph.groups].index(name)
    ladder = constraints.ladder(graph)
    return [graph.groups[i].width, *ladder.after[ladder.group == i].tolist()]


def test_wide_groups_shrink_in_steps_of_round_to_and_narrow_ones_by_single_units():
    graph = chain(40, 31)
    assert widths(graph, "conv0", Constraints()) == [40, 32, 24, 16, 8]
    assert widths(graph, "conv1", Constraints()) == list(range(31, 0, -1))
    assert widths(graph, "conv0", Constraints(round_to=1)) == list(range(40, 0, -1))


def test_a_width_that_is_no_multiple_stays_allowed_as_it_is():
    assert widths(chain(42), "conv0", Constraints()) == [42, 40, 32, 24, 16, 8]


def test_units_of_several_channels_need_fewer_units_for_a_multiple():
    assert widths(chain(16, multiplicity=4), "conv0", Constraints()) == [16, 14, 12, 10, 8, 6, 4, 2]
    assert widths(chain(16, multiplicity=8), "conv0", Constraints()) == list(range(16, 0, -1))


def test_min_width_is_rounded_up_and_never_above_the_full_width():
    assert widths(chain(40), "conv0", Constraints(min_width=17)) == [40, 32, 24]
    assert widths(chain(5), "conv0", Constraints(min_width=17)) == [5]


def test_ratio_caps_by_pattern_take_the_strictest():
    graph = chain(20, 20, 20)
    constraints = Constraints(max_ratio={"conv*": 0.9, "conv1": 0.5})
    assert widths(graph, "conv0", constraints)[-1] == 2
    assert widths(graph, "conv1", constraints)[-1] == 10
    assert widths(graph, "conv2", Constraints(max_ratio={"conv1": 0.5}))[-1] == 1
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
        {"keep": "conv1"},
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
