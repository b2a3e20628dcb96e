import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentei.errors import BudgetError, PlanError
from sentei.plan import (
    Budget,
    Constraints,
    Plan,
    allocate,
    criterion,
    note_on_use,
    note_on_widths,
    plan_from_widths,
    uniform,
)
from sentei.plan.testing import small_case
from sentei.surgery import cut
from tests.plan.fakes import FakeGraph, FakeGroup, chain, graphs, resnet, scores_for

METRICS = ("macs", "params", "activation_bytes")
VGG = chain(64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


def used(graph, plan, budget):
    """The largest share of a limit that the plan uses."""
    cost = graph.cost(plan)
    return max(getattr(cost, name) / limit for name, limit in budget.resolve(graph).items())


def any_plan(graph, budget, kind, constraints, seed=0):
    if kind == "uniform":
        return uniform(graph, budget, constraints=constraints)
    return allocate(graph, budget, scores_for(graph, seed), scope=kind, constraints=constraints)


KINDS = st.sampled_from(("uniform", "local", "global"))
CONSTRAINTS = st.builds(
    Constraints, round_to=st.sampled_from((1, 4, 8)), min_width=st.integers(1, 4), max_ratio=st.floats(0.3, 1)
)
BUDGETS = st.builds(
    lambda limits: Budget(**limits),
    st.dictionaries(st.sampled_from(METRICS), st.floats(0.05, 1), min_size=1, max_size=2),
)


@given(graphs(), BUDGETS, KINDS, CONSTRAINTS)
def test_never_above_the_budget_never_below_the_floor_and_honest_about_the_rest(graph, budget, kind, constraints):
    ladder = constraints.ladder(graph)
    least, limits = graph.costs(ladder.floor), budget.resolve(graph)
    if any(getattr(least, name) > limit for name, limit in limits.items()):
        with pytest.raises(BudgetError, match="smallest reachable"):
            any_plan(graph, budget, kind, constraints)
        return
    plan = any_plan(graph, budget, kind, constraints)
    plan.check_fits(graph)
    widths, cost = plan.widths(graph), graph.cost(plan)
    assert all(getattr(cost, name) <= limit for name, limit in limits.items())
    assert (widths >= ladder.floor).all()
    assert all(w == g.width or w % s == 0 for w, g, s in zip(widths, graph.groups, ladder.step, strict=True))
    assert used(graph, plan, budget) >= 0.99 or plan.note
    assert plan == any_plan(graph, budget, kind, constraints)


@given(
    graphs(),
    st.sampled_from(METRICS),
    st.lists(st.floats(0.05, 1), min_size=2, max_size=6),
    KINDS,
    CONSTRAINTS,
)
def test_a_smaller_budget_never_yields_a_larger_model(graph, metric, fractions, kind, constraints):
    costs = []
    for fraction in sorted(fractions):
        try:
            plan = any_plan(graph, Budget(**{metric: fraction}), kind, constraints)
        except BudgetError:
            assert not costs, "a larger budget cannot be met where a smaller one could"
            continue
        costs.append(getattr(graph.cost(plan), metric))
    assert costs == sorted(costs)


@given(graphs(), st.floats(0.2, 0.9), st.sampled_from(("local", "global")), st.integers(0, 9))
def test_the_best_units_of_each_group_stay(graph, fraction, scope, seed):
    scores = scores_for(graph, seed)
    try:
        plan = allocate(graph, Budget(params=fraction), scores, scope=scope)
    except BudgetError:
        return
    for name, keep in plan.keep.items():
        gone = np.delete(scores[name], keep)
        assert gone.max(initial=-1) <= scores[name][keep].min()


@pytest.mark.parametrize("graph", [resnet(), resnet(blocks=9), resnet((64, 128, 256, 512), 2), VGG])
@pytest.mark.parametrize("fraction", [0.9, 0.75, 0.5, 0.3, 0.15])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["uniform", "global"])
def test_real_shapes_use_at_least_99_percent_of_the_budget(graph, fraction, metric, kind):
    budget = Budget(**{metric: fraction})
    plan = any_plan(graph, budget, kind, Constraints(round_to=1))
    assert 0.99 <= used(graph, plan, budget) <= 1
    assert "of the budget" not in plan.note


@pytest.mark.parametrize("graph", [resnet(), resnet(blocks=9), resnet((64, 128, 256, 512), 2), VGG])
@pytest.mark.parametrize("fraction", [0.9, 0.75, 0.5, 0.3])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["uniform", "global"])
def test_default_widths_are_multiples_of_four_and_use_most_of_the_budget(graph, fraction, metric, kind):
    budget = Budget(**{metric: fraction})
    plan = any_plan(graph, budget, kind, Constraints())
    share = used(graph, plan, budget)
    assert 0.97 <= share <= 1
    assert all(len(units) % 4 == 0 for name, units in plan.keep.items() if graph.group(name).width >= 16)
    assert plan.note == "" if share >= 0.99 else plan.note.startswith(f"{share:.1%} of the budget")


def test_a_plan_says_which_widths_are_odd():
    graph = chain(40, 40, 15)
    plan = uniform(graph, Budget(macs=0.5), constraints=Constraints(round_to=1))
    odd = [name for name, units in plan.keep.items() if len(units) % 4 and name != "conv2"]
    assert odd
    assert f"odd widths, no multiples of 4, run slower than their MACs tell ({odd[0]} 40 -> " in plan.note
    assert "conv2" not in plan.note
    assert "odd" not in uniform(graph, Budget(macs=0.5)).note
    assert note_on_use(graph, Budget(macs=0.5), plan.widths(graph)) == plan.note


def test_a_unit_of_several_channels_is_odd_only_if_its_channels_are():
    assert note_on_widths(chain(16, multiplicity=4), np.array([3, 13, 10])) == ""
    assert "conv0 16 -> 13" in note_on_widths(chain(16, multiplicity=2), np.array([3, 13, 10]))


@pytest.mark.parametrize("graph", [resnet(), VGG, resnet((256, 512, 1024), 4)])
def test_uniform_keeps_about_the_same_share_of_every_group(graph):
    plan = uniform(graph, Budget(macs=0.5), constraints=Constraints(round_to=1))
    ratios = np.array([len(units) / graph.group(name).width for name, units in plan.keep.items()])
    steps = np.array([1 / graph.group(name).width for name in plan.keep])
    assert (np.abs(ratios - np.median(ratios)) <= 2 * steps.max()).all()
    assert 0.6 < np.median(ratios) < 0.8


def test_uniform_keeps_the_first_units_unless_there_are_scores():
    graph = chain(10)
    assert uniform(graph, Budget(macs=0.5)).keep["conv0"].tolist() == [0, 1, 2, 3]
    scored = uniform(graph, Budget(macs=0.5), scores={"conv0": np.arange(10.0)})
    assert scored.keep["conv0"].tolist() == [6, 7, 8, 9]


def test_local_scope_has_the_widths_of_uniform():
    graph, budget = resnet(), Budget(macs=0.4)
    local = allocate(graph, budget, scores_for(graph), scope="local")
    assert np.array_equal(local.widths(graph), uniform(graph, budget).widths(graph))


def test_global_scope_removes_the_lowest_scores_of_the_whole_network():
    graph = chain(40, 40, kernel=1)
    scores = {"conv0": np.linspace(0, 1, 40), "conv1": np.linspace(10, 11, 40)}
    plan = allocate(graph, Budget(params=0.5), scores, constraints=Constraints(round_to=1))
    assert len(plan.keep["conv0"]) < 24
    assert len(plan.keep["conv1"]) == 40


@pytest.mark.parametrize("round_to", [1, 8])
def test_ties_do_not_prune_more_than_the_budget_asks_for_and_are_spread(round_to):
    graph, rng = resnet((64, 128, 256, 512), 2), np.random.default_rng(0)
    scores = {
        g.name: np.where(rng.random(g.width) < 0.6, 0.0, rng.random(g.width) + 0.5)
        for g in graph.groups
        if not g.frozen
    }
    budget = Budget(params=0.9)
    plan = allocate(graph, budget, scores, constraints=Constraints(round_to=round_to))
    assert used(graph, plan, budget) >= 0.99
    for name, keep in plan.keep.items():
        gone = np.delete(scores[name], keep)
        assert len(gone) <= 0.2 * len(scores[name])
        assert (gone == 0).all()


def test_equal_scores_everywhere_are_the_uniform_plan():
    graph, budget = resnet(), Budget(macs=0.5)
    ones = {g.name: np.ones(g.width) for g in graph.groups if not g.frozen}
    assert allocate(graph, budget, ones) == uniform(graph, budget)


def test_all_limits_hold():
    graph = resnet()
    plan = uniform(graph, Budget(macs=0.5, params=0.2))
    cost, full = graph.cost(plan), graph.cost()
    assert cost.macs <= 0.5 * full.macs
    assert 0.99 * 0.2 <= cost.params / full.params <= 0.2


def test_a_budget_that_the_full_model_meets_removes_nothing_and_says_so():
    graph = chain(10)
    plan = uniform(graph, Budget(macs=10**12))
    assert plan == Plan.full(graph)
    assert "nothing was removed" in plan.note
    assert uniform(graph, Budget(macs=1.0)).note == ""


def test_what_coarse_steps_leave_unused_is_noted():
    plan = uniform(chain(32), Budget(macs=0.6))
    assert len(plan.keep["conv0"]) == 16
    assert plan.note.startswith("83.")


def test_constraints_are_hard():
    graph = resnet()
    constraints = Constraints(round_to=1, keep=("stream*",), max_ratio={"stage0.*": 0.25})
    plan = uniform(graph, Budget(macs=0.6), constraints=constraints)
    for name, units in plan.keep.items():
        if name.startswith("stream"):
            assert len(units) == graph.group(name).width
        if name.startswith("stage0"):
            assert len(units) >= 12


@pytest.mark.parametrize(
    ("constraints", "names"),
    [
        (Constraints(min_width=30), "min_width=30"),
        (Constraints(max_ratio=0.1), "max_ratio=0.1"),
        (Constraints(keep=("conv*",)), r"keep=\('conv\*',\)"),
        (Constraints(max_ratio=0.1, keep=("conv*",)), "the constraints together"),
    ],
)
def test_an_unreachable_budget_names_the_smallest_cost_and_what_limits_it(constraints, names):
    graph = chain(40, 40)
    with pytest.raises(BudgetError, match=names) as error:
        uniform(graph, Budget(macs=0.1), constraints=constraints)
    smallest = int(graph.costs(constraints.ladder(graph).floor).macs)
    assert f"{smallest:,}" in str(error.value)


def test_an_unreachable_budget_names_the_frozen_groups():
    with pytest.raises(BudgetError, match="2 of 3 groups are frozen"):
        uniform(chain(40), Budget(macs=0.01))


def test_a_percentage_given_as_a_number_is_explained():
    with pytest.raises(BudgetError, match=r"for 50 % write 0.5"):
        uniform(chain(40), Budget(macs=50))


def test_a_model_without_anything_to_prune():
    graph = FakeGraph((FakeGroup("in", 3, True), FakeGroup("out", 4, True)), ((0, 1, 1, 1),))
    assert uniform(graph, Budget(macs=1.0)) == Plan.full(graph)
    with pytest.raises(BudgetError, match="2 of 2 groups are frozen"):
        uniform(graph, Budget(macs=0.5))


def test_scores_that_do_not_fit_are_refused():
    graph, budget = chain(10, 10), Budget(macs=0.6)
    good = {"conv0": np.ones(10), "conv1": np.ones(10)}
    with pytest.raises(PlanError, match="no scores for group 'conv1'"):
        allocate(graph, budget, {"conv0": np.ones(10)})
    with pytest.raises(PlanError, match=r"shape \(10,\), got \(9,\)"):
        allocate(graph, budget, good | {"conv1": np.ones(9)})
    with pytest.raises(PlanError, match="1 scores that are NaN"):
        allocate(graph, budget, good | {"conv1": np.r_[np.nan, np.ones(9)]})
    with pytest.raises(PlanError, match="no group 'conv7'"):
        allocate(graph, budget, good | {"conv7": np.ones(10)})
    with pytest.raises(PlanError, match="scope='everywhere'"):
        allocate(graph, budget, good, scope="everywhere")
    kept = allocate(graph, budget, {"conv0": np.ones(10)}, constraints=Constraints(keep=("conv1",)))
    assert len(kept.keep["conv1"]) == 10


def test_plan_from_widths():
    graph = chain(4, 6)
    plan = plan_from_widths(graph, np.array([3, 2, 6, 10]), {"conv0": np.array([0.0, 3, 1, 2])})
    assert plan.keep["conv0"].tolist() == [1, 3]
    assert plan.keep["conv1"].tolist() == [0, 1, 2, 3, 4, 5]
    for widths in ([3, 0, 6, 10], [3, 4, 7, 10], [3, 4, 6, 9]):
        with pytest.raises(PlanError, match="cannot keep"):
            plan_from_widths(graph, np.array(widths))


@pytest.mark.parametrize("kind", ["uniform", "local", "global"])
@pytest.mark.parametrize("metric", METRICS)
def test_the_cost_of_the_cut_parameters_is_within_the_budget(kind, metric):
    model, graph, batches = small_case()
    budget = Budget(**{metric: 0.6})
    scores, single = criterion("l2")(model, graph), Constraints(round_to=1)
    plan = (
        uniform(graph, budget, constraints=single)
        if kind == "uniform"
        else allocate(graph, budget, scores, scope=kind, constraints=single)
    )
    plan.check_fits(graph)
    small = cut(model, graph, plan)
    assert sum(p.numel() for p in small.parameters()) == graph.cost(plan).params
    assert used(graph, plan, budget) <= 1
    assert used(graph, plan, budget) >= 0.95


def test_thousands_of_channels_take_a_moment_only():
    widths = tuple(64 * 2**i for i in range(6))
    graph = resnet(widths, 6)
    assert sum(g.width for g in graph.groups) > 25_000
    start = time.perf_counter()
    plan = allocate(graph, Budget(macs=0.5), scores_for(graph))
    assert time.perf_counter() - start < 5
    assert used(graph, plan, Budget(macs=0.5)) >= 0.99
