"""Groups that keep the same share: whatever makes a plan moves them in step."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sentei import Budget, ChannelGraph, compose, cut, trace, uniform
from sentei.graph.bundles import completed, in_proportion, steps_of
from sentei.plan import Constraints, allocate
from sentei.search.space import budgeted, tenths
from tests.plan.fakes import FakeGraph, chain, scores_for

TIED = [((1, 3),), ((1, 2), (3, 4)), ((1, 2, 3, 4),)]


def tied(widths: tuple[int, ...], bundles: tuple[tuple[int, ...], ...]) -> FakeGraph:
    return replace(chain(*widths), bundles=bundles)


def in_step(graph: FakeGraph | ChannelGraph, widths: np.ndarray) -> bool:
    full = np.array([g.width for g in graph.groups])
    return all(len({float(widths[i] / full[i]) for i in bundle}) == 1 for bundle in graph.bundles)


@given(
    st.lists(st.sampled_from((4, 6, 12, 32, 48, 96)), min_size=4, max_size=4),
    st.sampled_from(TIED),
    st.floats(0.15, 0.95),
    st.sampled_from((1, 8)),
    st.integers(0, 9),
)
def test_plans_of_all_kinds_keep_bundles_in_step(
    widths: list[int], bundles: tuple[tuple[int, ...], ...], share: float, round_to: int, seed: int
) -> None:
    graph = tied(tuple(widths), bundles)
    constraints, scores = Constraints(round_to=round_to), scores_for(graph, seed)
    least = graph.costs(constraints.ladder(graph).floor).macs / graph.cost().macs
    budget = Budget(macs=max(share, float(least) * 1.001))
    for plan in (
        uniform(graph, budget, constraints=constraints),
        allocate(graph, budget, scores, constraints=constraints),
        allocate(graph, budget, scores, scope="local", constraints=constraints),
    ):
        assert in_step(graph, plan.widths(graph))
        assert graph.cost(plan).macs <= budget.limits["macs"] * graph.cost().macs


def test_widths_in_proportion_round_up_to_whole_steps() -> None:
    full = np.array([256, 8, 5])
    assert in_proportion(np.array([200, 3, 2]), full, [(0, 1)]).tolist() == [96, 3, 2]
    assert in_proportion(np.array([[9, 9, 9], [4, 4, 4]]), np.array([6, 9, 9]), [(0, 1)])[1].tolist() == [4, 6, 4]
    assert steps_of([256, 8]) == 8


def test_completed_plans_keep_what_they_kept() -> None:
    width = {"a": 6, "b": 6, "c": 12}
    keep = {"a": np.array([1, 5]), "b": np.array([0, 1, 2]), "c": np.array([11])}
    done = completed(keep, [("a", "b", "c")], width)
    assert {n: k.tolist() for n, k in done.items()} == {"a": [0, 1, 5], "b": [0, 1, 2], "c": [0, 1, 2, 3, 4, 11]}
    whole = completed({"a": np.array([1])}, [("a", "b")], width)  # a group that is not named stays whole
    assert {n: len(k) for n, k in whole.items()} == {"a": 6}


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.v, self.p, self.o = (
            nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 16), nn.Linear(16, 16), nn.Conv2d(16, 2, 1)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        t = self.a(x).flatten(2).transpose(1, 2)
        b, n, c = t.shape
        return self.o(self.p(self.v(t).reshape(b, n, c)).transpose(1, 2).unflatten(2, x.shape[2:]))


@pytest.fixture(scope="module")
def real() -> tuple[nn.Module, ChannelGraph]:
    model = Tokens().eval()
    return model, trace(model, torch.zeros(2, 3, 8, 8))


def test_a_bundle_is_cut_twice_and_composed(real: tuple[nn.Module, ChannelGraph]) -> None:
    model, graph = real
    assert len(graph.bundles) == 1
    first = uniform(graph, Budget(macs=0.6))
    small = cut(model, graph, first)
    second_graph = trace(small, torch.zeros(2, 3, 8, 8))
    second = uniform(second_graph, Budget(macs=0.6))
    both = compose(graph, first, second_graph, second)
    direct, twice = cut(model, graph, both), cut(small, second_graph, second)
    assert all(torch.equal(a, b) for a, b in zip(direct.parameters(), twice.parameters(), strict=True))


def test_spaces_have_one_gene_for_a_bundle(real: tuple[nn.Module, ChannelGraph]) -> None:
    _, graph = real
    names, rng = [g.name for g in graph.groups if not g.frozen], np.random.default_rng(0)
    assert len(names) == 3
    for space in (budgeted(graph, names, Budget(macs=0.5), Constraints()), tenths(graph, names, 1.0)):
        assert len(space) == 2
        for _ in range(20):
            levels = space.random(rng)
            assert in_step(graph, space.widths(levels))
            assert space.levels(space.widths(levels)) == levels
