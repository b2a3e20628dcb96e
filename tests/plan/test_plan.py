import json

import numpy as np
import pytest
import torch

from sentei.errors import PlanError
from sentei.plan import Budget, Constraints, Plan, uniform
from sentei.plan.testing import small_case
from tests.plan.fakes import chain
from tests.surgery.damage import flipped, restructured


def test_indices_are_sorted_and_cannot_be_written_to():
    plan = Plan({"a": [3, 0, 2]})
    assert plan.keep["a"].tolist() == [0, 2, 3]
    assert plan.keep["a"].dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        plan.keep["a"][0] = 1


def test_arrays_and_tensors_are_accepted_and_not_aliased():
    given = np.array([1, 2])
    plan = Plan({"a": given, "b": torch.tensor([4, 1])})
    given[0] = 0
    assert plan.keep["a"].tolist() == [1, 2]
    assert plan.keep["b"].tolist() == [1, 4]


@pytest.mark.parametrize(
    ("units", "text"),
    [
        ([], "at least one unit must stay"),
        ([0, -1], "start at 0"),
        ([2, 1, 2], "unit 2 is listed more than once"),
        ([0.5], "float64"),
        ([True, False], "bool"),
        ([[0, 1]], r"shape \(1, 2\)"),
        ("abc", "unit indices"),
    ],
)
def test_bad_indices_are_refused_and_named(units, text):
    with pytest.raises(PlanError, match=text) as error:
        Plan({"layer1.conv1": units})
    assert "layer1.conv1" in str(error.value)


def test_equality_is_by_value():
    graph = chain(4)
    assert Plan({"a": [1, 0]}) == Plan({"a": np.array([0, 1])})
    assert hash(Plan({"a": [1, 0]})) == hash(Plan({"a": [0, 1]}))
    assert Plan({"a": [0, 1]}) != Plan({"a": [0, 2]})
    assert Plan({"a": [0]}) != Plan({"b": [0]})
    assert Plan({"conv0": [0]}) != Plan({"conv0": [0]}, graph.structure)
    assert Plan({"a": [0]}) == Plan({"a": [0]}, note="a note says nothing about what is cut")
    assert Plan({"a": [0]}) != "plan"


def test_full_names_every_group_that_may_shrink():
    graph = chain(4, 6)
    plan = Plan.full(graph)
    assert {name: len(units) for name, units in plan.keep.items()} == {"conv0": 4, "conv1": 6}
    assert plan.widths(graph).tolist() == [3, 4, 6, 10]


def test_groups_that_are_not_named_keep_their_width():
    assert Plan({"conv1": [5]}).widths(chain(4, 6)).tolist() == [3, 4, 1, 10]


def test_json_round_trip_without_structure():
    plan = Plan({"a": [0, 5, 6], 'odd "name"': [1]}, note="note")
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.note == "note"
    assert '    "a": [0, 5, 6],\n' in plan.to_json()


def test_json_of_an_empty_plan():
    assert Plan.from_json(Plan({}).to_json()) == Plan({})


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("sentei.plan", "other", "format"),
        ('"version": 1', '"version": 99', "version 99"),
        ("[0, 5]", "[0, 0]", "more than once"),
        ("[0, 5]", '"zero"', "keep.a is .zero."),
        ('"keep"', '"kept"', "keep"),
        ("}\n}\n", "", "not a plan"),
        ("{", "[{", "not a plan"),
    ],
)
def test_altered_json_is_refused(old, new, text):
    with pytest.raises(PlanError, match=text):
        Plan.from_json(Plan({"a": [0, 5]}).to_json().replace(old, new))


def test_a_plan_for_another_model_is_refused_with_the_first_difference():
    graph = chain(4, 6)
    plan = Plan({"conv1": [0, 5]}, graph.structure)
    plan.check_fits(graph)
    with pytest.raises(PlanError, match="parameter 1.weight is of shape 6x4x9.*10x4x9"):
        plan.check_fits(chain(4))
    with pytest.raises(PlanError, match="wired differently"):
        plan.check_fits(chain(4, 6, pixels=1))


def test_a_plan_without_structure_fits_every_model_that_has_its_units():
    plan = Plan({"conv1": [0, 5]})
    plan.check_fits(chain(4, 6, pixels=1))
    with pytest.raises(PlanError, match="conv1"):
        plan.check_fits(chain(4))
    with pytest.raises(PlanError, match="conv1.* 4 units"):
        plan.check_fits(chain(4, 4))


def test_json_round_trip_on_a_traced_network():
    _, graph, _ = small_case()
    plan = uniform(graph, Budget(macs=0.5))
    again = Plan.from_json(plan.to_json())
    assert again == plan
    again.check_fits(graph)


def test_repr_is_short():
    assert repr(Plan({"a": [0, 1], "b": [0]}, note="n")) == "Plan(2 groups, 3 units kept, note='n')"


def test_no_damage_to_its_text_gives_anything_but_a_plan_or_a_plan_error():
    _, graph, _ = small_case()
    plan, rng = uniform(graph, Budget(macs=0.5), constraints=Constraints(round_to=1)), np.random.default_rng(0)
    text, refused = plan.to_json(), 0
    for _ in range(300):
        for damaged in (flipped(text.encode(), rng).decode("latin-1"), json.dumps(restructured(json.loads(text), rng))):
            try:
                Plan.from_json(damaged)
            except PlanError:
                refused += 1
    assert refused > 300
