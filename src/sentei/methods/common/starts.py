"""Where a search of widths begins: the structures that rankings of the units lead to."""

from __future__ import annotations

from collections.abc import Iterable

from sentei.graph import ChannelGraph
from sentei.plan import Budget, Constraints, allocate, uniform
from sentei.plan.allocate import Scores
from sentei.search.space import Levels, Space


def starting_points(
    space: Space, graph: ChannelGraph, budget: Budget, constraints: Constraints, rankings: Iterable[Scores]
) -> list[Levels]:
    """Structures of a space with a budget: the same share of every group, and what global rankings by scores keep.

    >>> starting_points(space, graph, Budget(macs=0.5), Constraints(), [CRITERIA["l1"](model, graph)])
    [(8, 8, 17), (10, 8, 14)]
    """
    plans = [uniform(graph, budget, constraints=constraints)]
    plans += [allocate(graph, budget, scores, constraints=constraints) for scores in rankings]
    return list(dict.fromkeys(space.near(graph.widths(plan)) for plan in plans))
