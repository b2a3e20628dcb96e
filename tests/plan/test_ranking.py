"""Orders of removal: what is ranked by its score, and by its score for what it saves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentei import Budget, Constraints, allocate
from sentei.errors import PlanError
from sentei.plan.ranking import by_score, by_score_per_cost
from tests.plan.fakes import FakeGraph, FakeGroup, chain, graphs

ONE = Constraints(round_to=1)


def test_the_cheapest_loss_for_what_it_saves_goes_first() -> None:
    # Two layers with equal scores; a unit of the first costs four times as many MACs.
    groups = (FakeGroup("in", 3, True), FakeGroup("early", 8), FakeGroup("late", 8), FakeGroup("out", 10, True))
    graph = FakeGraph(groups, ((0, 1, 9, 256), (1, 2, 1, 16), (2, 3, 1, 1)))
    scores = {"early": np.full(8, 1.0), "late": np.full(8, 0.9)}
    ladder = ONE.ladder(graph)  # type: ignore[arg-type]
    first = by_score(graph, ladder, scores)[0]  # type: ignore[arg-type]
    cheapest = by_score_per_cost(graph, ladder, scores, lambda w: graph.costs(w).macs)[0]  # type: ignore[arg-type]
    assert graph.groups[ladder.group[first]].name == "late"
    assert graph.groups[ladder.group[cheapest]].name == "early"
    plan = allocate(graph, Budget(macs=0.7), scores, rank="per_cost", constraints=ONE)  # type: ignore[arg-type]
    assert len(plan.keep["late"]) == 8 > len(plan.keep["early"])
    assert graph.cost(plan).macs <= 0.7 * graph.cost().macs


def test_savings_are_those_of_what_is_left() -> None:
    graph = chain(8, 8)
    ladder = ONE.ladder(graph)  # type: ignore[arg-type]
    scores = {name: np.arange(1.0, 9.0) for name in ("conv0", "conv1")}
    order = by_score_per_cost(graph, ladder, scores, lambda w: graph.costs(w).macs)  # type: ignore[arg-type]
    widths, macs = ladder.full.copy(), []
    for rung in order:
        candidates = {}
        for group in (1, 2):
            if widths[group] > 1:
                less = widths.copy()
                less[group] -= 1
                saved = float(graph.costs(widths).macs - graph.costs(less).macs)
                candidates[group] = float(8 - widths[group] + 1) / saved
        assert candidates[int(ladder.group[rung])] == pytest.approx(min(candidates.values()))
        widths[ladder.group[rung]] = ladder.after[rung]
        macs.append(float(graph.costs(widths).macs))
    assert macs == sorted(macs, reverse=True)


@given(graphs(), st.floats(0.3, 0.9), st.integers(0, 99))
def test_an_order_holds_every_removal_once_and_groups_from_the_top(graph: FakeGraph, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ladder = ONE.ladder(graph)  # type: ignore[arg-type]
    scores = {g.name: rng.random(g.width) for g in graph.groups}
    order = by_score_per_cost(graph, ladder, scores, lambda w: graph.costs(w).macs)  # type: ignore[arg-type]
    assert sorted(order.tolist()) == list(range(len(ladder.group)))
    for group in range(len(graph.groups)):
        mine = ladder.before[order[ladder.group[order] == group]]
        assert (np.diff(mine) < 0).all()


def test_another_rank_is_refused() -> None:
    with pytest.raises(PlanError, match="'score' or 'per_cost'"):
        allocate(chain(8), Budget(macs=0.5), {"conv0": np.ones(8)}, rank="cheap")  # type: ignore[arg-type]
