"""In which order units go: evenly, by score, or by score for what it saves.

An order is one of all rungs of a ladder (`Ladder`), those of a group from its full width down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from sentei.graph import ChannelGraph
from sentei.plan.constraints import Ladder

Scores = Mapping[str, np.ndarray]
Load = Callable[[np.ndarray], np.ndarray]
"""Largest share used of any limit at widths [..., n_groups]; the budget holds where it is at most 1."""
Rank = Literal["score", "per_cost"]
DEPTH = 4
"""So many removals of a group are looked at together where one alone saves nothing."""


def evenly(ladder: Ladder) -> np.ndarray:
    """The order that takes all groups to the same share of their units, [n_rungs]."""
    return np.argsort(_removed_share(ladder), kind="stable")


def by_score(graph: ChannelGraph, ladder: Ladder, scores: Scores) -> np.ndarray:
    """The lowest mean scores first, [n_rungs]; among equal ones the group that has lost least."""
    return np.lexsort((_removed_share(ladder), _rung_scores(graph, ladder, scores)))


def by_score_per_cost(graph: ChannelGraph, ladder: Ladder, scores: Scores, load: Load) -> np.ndarray:
    """The least score for what a removal saves first, [n_rungs].

    What it saves is counted at the widths that the removals before have left. Where it saves nothing (a kernel computes
    in larger steps) it counts as a part of the next one that does.
    """
    each = _rung_scores(graph, ladder, scores) * (ladder.before - ladder.after)
    ends = np.append(np.flatnonzero(np.diff(ladder.group, prepend=-1)), len(ladder.group))
    place, stop = ends[:-1].copy(), ends[1:]
    widths, order = ladder.full, []
    while (open_ := np.flatnonzero(place < stop)).size:
        price = np.array([np.inf] * len(open_))
        for depth in range(1, DEPTH + 1):
            last = np.minimum(place[open_] + depth, stop[open_]) - 1
            trials = np.repeat(widths[None], len(open_), 0)
            trials[np.arange(len(open_)), ladder.group[last]] = ladder.after[last]
            saved = load(widths) - load(ladder.following(trials))
            lost = np.array([each[a : b + 1].sum() for a, b in zip(place[open_], last, strict=True)])
            new = np.isinf(price) & (saved > 0)
            price[new] = lost[new] / saved[new]
            if np.isfinite(price).all():
                break
        best = int(open_[price.argmin()])
        rung = int(place[best])
        order.append(rung)
        place[best] += 1
        widths = widths.copy()
        widths[ladder.group[rung]] = ladder.after[rung]
        widths = ladder.following(widths)
    return np.array(order, np.int64)


def _removed_share(ladder: Ladder) -> np.ndarray:
    """Share of the group that is gone halfway through each rung; sorted by it, rungs round to the nearest."""
    return 1 - (ladder.before + ladder.after) / (2 * ladder.full[ladder.group])


def _rung_scores(graph: ChannelGraph, ladder: Ladder, scores: Scores) -> np.ndarray:
    """Mean score of the units that each rung removes, [n_rungs]."""
    means = []
    for i in np.unique(ladder.group):
        members = next((b for b in ladder.bundles if i in b), (i,))
        means.append(np.mean([_means(ladder, i, m, scores[graph.groups[m].name]) for m in members], axis=0))
    return np.concatenate(means) if means else np.zeros(0)


def _means(ladder: Ladder, group: int, member: int, scores: np.ndarray) -> np.ndarray:
    """Mean score of the units that one group, or another that follows it, loses on each rung of it."""
    rungs = ladder.group == group
    before, after = (w[rungs] * ladder.full[member] // ladder.full[group] for w in (ladder.before, ladder.after))
    ascending = np.sort(np.asarray(scores, np.float64))[: ladder.full[member] - ladder.floor[member]]
    return np.add.reduceat(ascending, ladder.full[member] - before) / (before - after)
