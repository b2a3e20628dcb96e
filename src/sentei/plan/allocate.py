"""From a budget to a plan: how many units each group keeps, and which.

Every allocation is one walk down the same ladder of removals. What differs is the order: `uniform` takes each
group to the same keep ratio, `allocate(scope="global")` removes the lowest scores of the whole network first.
The walk stops at the first point that meets the budget, so ties cannot remove more than was asked for. If
that leaves more than 1 % of the budget unused, single removals are taken back and exchanged. The candidates
for that never depend on the budget, hence a smaller budget never yields a larger model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Literal, get_args

import numpy as np

from sentei.errors import BudgetError, PlanError
from sentei.graph import ChannelGraph, Group
from sentei.plan.budget import Budget, refuse_other
from sentei.plan.constraints import FAST, Constraints, Ladder, channels_of
from sentei.plan.plan import Plan
from sentei.plan.ranking import Load, Rank, Scores, by_score, by_score_per_cost, evenly

FILL = 0.99
AT_ONCE = 32
"""Places of an order at which the cost is computed together."""
UNITS = {
    "macs": "MACs",
    "params": "parameters",
    "activation_bytes": "activation bytes",
    "memory": "bytes of live activations",
    "latency_ms": "ms",
}


def uniform(
    graph: ChannelGraph,
    budget: Budget,
    *,
    scores: Scores | None = None,
    constraints: Constraints | None = None,
) -> Plan:
    """Keep the same share of every group, as large as the budget allows.

    >>> plan = sentei.uniform(graph, sentei.Budget(macs=0.5))  # doctest: +SKIP

    The units with the highest `scores` ({group name: float [width]}) stay, or the first ones where none are
    given. The cost is never above the budget, and within 1 % under it unless the steps are too coarse, which
    `plan.note` then says. Raises BudgetError, naming the smallest reachable cost, if it cannot be met.
    """
    constraints = constraints or Constraints()
    ladder = constraints.ladder(graph)
    order = evenly(ladder)
    return _planned(graph, budget, constraints, ladder, order, scores)


def allocate(
    graph: ChannelGraph,
    budget: Budget,
    scores: Scores,
    *,
    scope: Literal["global", "local"] = "global",
    rank: Rank = "score",
    constraints: Constraints | None = None,
) -> Plan:
    """Keep the units with the highest scores within the budget.

    >>> scores = sentei.plan.CRITERIA["l1"](model, graph)  # doctest: +SKIP
    >>> plan = sentei.allocate(graph, sentei.Budget(macs=0.5), scores)  # doctest: +SKIP

    `scores` is {group name: float [width]} for every group that may shrink, comparable between groups for
    scope "global", where one threshold decides over the whole network; "local" gives all groups the same keep
    ratio. A removal takes `constraints.round_to` units at once and ranks by their mean score; among equal
    ones the group that has lost least goes first, and within a group the last unit. With rank "per_cost" the
    removals with the least score for what they save of the budgeted costs go first, each counted in the network
    that those before have left (as in HALP, Shen et al. 2021, arXiv 2110.10811). Budget and note are those of
    `uniform`. One threshold over all layers is that of Liu et al., "Learning Efficient Convolutional Networks through
    Network Slimming" (ICCV 2017, arXiv 1708.06519); here scores of any kind meet it.

    Raises BudgetError, naming the smallest reachable cost, if the budget cannot be met, and PlanError for another
    scope or rank, a group that may shrink and has no scores, and scores of another shape, NaN or infinite.
    """
    if scope not in ("global", "local"):
        raise PlanError(f"scope={scope!r}: expected 'global' or 'local'")
    if rank not in get_args(Rank):
        raise PlanError(f"rank={rank!r}: expected 'score' or 'per_cost'")
    constraints = constraints or Constraints()
    ladder = constraints.ladder(graph)
    shrinking = [g for g, floor in zip(graph.groups, ladder.floor, strict=True) if floor < g.width]
    _check_scores(graph, scores, shrinking)
    if scope == "local":
        return uniform(graph, budget, scores=scores, constraints=constraints)
    order = by_score(graph, ladder, scores)
    if rank == "per_cost":
        order = by_score_per_cost(graph, ladder, scores, _load(graph, budget))
    return _planned(graph, budget, constraints, ladder, order, scores)


def rescaler(
    graph: ChannelGraph, budget: Budget, constraints: Constraints | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """A function that brings any widths onto the budget by one common factor.

    >>> onto = rescaler(graph, Budget(macs=0.5))  # doctest: +SKIP
    >>> onto(np.array([16, 24, 32, 10]))  # the proportions stay as far as steps and limits allow  # doctest: +SKIP
    array([12, 16, 24, 10])

    Widths are given as positive numbers and returned as int64, both [n_groups]. The cost is never above the budget,
    and within 1 % under it where the steps allow. Raises BudgetError if the budget cannot be met at all.
    """
    constraints = constraints or Constraints()
    ladder = constraints.ladder(graph)
    middle, load = (ladder.before + ladder.after) / 2, _remembered(_load(graph, budget))
    _check_reachable(graph, budget, constraints, ladder)

    def onto(target: np.ndarray) -> np.ndarray:
        order = np.argsort(-middle / np.asarray(target, np.float64)[ladder.group], kind="stable")
        widths, used = _descend(load, ladder, order)[0], 0.0
        while used < load(widths) < FILL:
            widths, used = _exchange(load, ladder, widths), float(load(widths))
        return widths

    return onto


def note_on_use(graph: ChannelGraph, budget: Budget, widths: np.ndarray, chosen: bool = False) -> str:
    """What to tell about these widths, int [n_groups]: what they leave of a budget, and which are slow.

    `chosen` are those that a search preferred to larger ones.
    """
    widths = np.asarray(widths)
    return _joined(_note(float(_load(graph, budget)(widths)), chosen), _avoidable(graph, widths))


def note_on_widths(graph: ChannelGraph, widths: np.ndarray, before: np.ndarray | None = None) -> str:
    """What to tell about widths, int [n_groups], that hardware is slow at; empty if there are none.

    Kernels work on several channels at once: 4 at least. `before` are the widths of the dense network, where `graph` is
    not its own.
    """
    before = graph.widths() if before is None else before
    channels = np.array([channels_of(g) for g in graph.groups])
    wide = (before * channels >= 4 * FAST) & (before * channels % FAST == 0)
    odd = np.flatnonzero(wide & (np.asarray(widths) * channels % FAST != 0))
    if not len(odd):
        return ""
    some = ", ".join(f"{graph.groups[i].name} {before[i]} -> {widths[i]}" for i in odd[:3])
    more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
    return f"odd widths, no multiples of {FAST}, run slower than their MACs tell ({some}{more})"


def _avoidable(graph: ChannelGraph, widths: np.ndarray, before: np.ndarray | None = None) -> str:
    """The note on widths that were chosen in steps of `round_to`."""
    odd = note_on_widths(graph, widths, before)
    return f"{odd}; the default round_to avoids them" if odd else ""


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _note(used: float, chosen: bool = False) -> str:
    if used >= FILL:
        return ""
    why = "the best structure that was found is no larger" if chosen else (
        "the groups shrink in steps too coarse to use more"
    )
    return f"{used:.1%} of the budget is used: {why}"


def plan_from_widths(graph: ChannelGraph, widths: np.ndarray, scores: Scores | None = None, *, note: str = "") -> Plan:
    """The plan that keeps `widths[i]` units of `graph.groups[i]`, those with the highest scores.

    >>> plan = plan_from_widths(graph, np.array([3, 24, 16, 10]))  # doctest: +SKIP

    `widths` is int [n_groups]; groups without scores keep their first units. Raises PlanError for a width
    that is 0 or too large, and for a frozen group that is not whole.
    """
    scores = scores or {}
    _check_scores(graph, scores, [])
    keep = {}
    for group, width in zip(graph.groups, np.asarray(widths).tolist(), strict=True):
        if not 1 <= width <= group.width or (group.frozen and width != group.width):
            kind = "frozen group" if group.frozen else "group"
            raise PlanError(f"{kind} {group.name!r} has {group.width} units and cannot keep {width}")
        if not group.frozen:
            best = _best_first(scores[group.name]) if group.name in scores else np.arange(group.width)
            keep[group.name] = best[:width]
    return Plan(keep, graph.structure, note=note)


def _planned(
    graph: ChannelGraph,
    budget: Budget,
    constraints: Constraints,
    ladder: Ladder,
    order: np.ndarray,
    scores: Scores | None,
) -> Plan:
    _check_reachable(graph, budget, constraints, ladder)
    widths, note = _descend(_load(graph, budget), ladder, order)
    nothing_asked = all(value == 1 for value in budget.limits.values())
    slow = _avoidable(graph, widths, constraints.widths_before(graph))
    return plan_from_widths(graph, widths, scores, note=_joined("" if nothing_asked else note, slow))


def _best_first(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-np.asarray(scores, np.float64), kind="stable")


def _check_scores(graph: ChannelGraph, scores: Scores, required: list[Group]) -> None:
    for group in required:
        if group.name not in scores:
            raise PlanError(
                f"no scores for group {group.name!r}; score it, or keep it whole with keep=({group.name!r},)"
            )
    for name, given in scores.items():
        values, width = np.asarray(given), graph.group(name).width
        if values.shape != (width,):
            raise PlanError(f"group {name!r} needs scores of shape ({width},), got {values.shape}")
        if not np.isfinite(values).all():
            bad = (~np.isfinite(values)).sum()
            raise PlanError(f"group {name!r} has {bad} scores that are NaN or infinite")


def _check_reachable(graph: ChannelGraph, budget: Budget, constraints: Constraints, ladder: Ladder) -> None:
    if _load(graph, budget)(ladder.floor) > 1:
        raise BudgetError(_unreachable(graph, budget, constraints, ladder))


def _descend(load: Load, ladder: Ladder, order: np.ndarray) -> tuple[np.ndarray, str]:
    """Widths after the fewest removals, in this order, that meet the budget, and what to tell about them."""
    if load(ladder.full) <= 1:
        return ladder.full, "the full model is within the budget, so nothing was removed"
    low, high = 0, len(order)
    while high - low > 1:  # many places at once: that costs little more than one
        step = -(-(high - low) // AT_ONCE)
        places = np.arange(low + step, high, step)
        met = np.flatnonzero(load(ladder.after_each(order, places)) <= 1)
        first = met[0] if len(met) else len(places)
        low = int(places[first - 1]) if first else low
        high = int(places[first]) if first < len(places) else high
    widths = _refine(load, ladder, order[:high])
    return widths, _note(float(load(widths)))


def _load(graph: ChannelGraph, budget: Budget) -> Load:
    refuse_other(budget)
    limits = budget.resolve(graph)
    # A count that rounds down to zero still has to tell zero from more.
    least = {name: limit if name == "latency_ms" else max(limit, 0.5) for name, limit in limits.items()}

    def load(widths: np.ndarray) -> np.ndarray:
        costs = graph.costs(widths)
        shares: list[np.ndarray] = [getattr(costs, name) / limit for name, limit in least.items()]
        return functools.reduce(np.maximum, shares)

    return load


def _remembered(load: Load) -> Load:
    """The same without computing it again for widths [n_groups] that were asked for lately."""
    known: dict[bytes, np.ndarray] = {}

    def again(widths: np.ndarray) -> np.ndarray:
        if widths.ndim > 1:
            return load(widths)
        key = np.asarray(widths, np.int64).tobytes()
        if key not in known:
            if len(known) >= AT_ONCE:
                known.clear()
            known[key] = load(widths)
        return known[key]

    return again


def _refine(load: Load, ladder: Ladder, removals: np.ndarray) -> np.ndarray:
    """Take other removals back for what the last one left open of the budget."""
    widths, ceiling = ladder.without(removals), load(ladder.without(removals[:-1]))
    closed = np.zeros(len(widths), bool)
    closed[ladder.group[removals[-1]]] = True
    for rung in removals[-2::-1]:
        if load(widths) >= FILL:
            return widths
        if closed[group := ladder.group[rung]]:
            continue
        trial = widths.copy()
        trial[group] = ladder.before[rung]
        trial = ladder.following(trial)
        used = load(trial)
        if used <= 1:
            widths = trial
        elif used < ceiling:
            return _exchange(load, ladder, widths)
        else:
            closed[group] = True
    return _exchange(load, ladder, widths)


def _exchange(load: Load, ladder: Ladder, widths: np.ndarray) -> np.ndarray:
    """The fullest of all widths that differ by one group a step up and at most one other a step down."""
    if load(widths) >= FILL:
        return widths
    best, most = widths, load(widths)
    down = ladder.down(widths)
    for lowered in [None, *np.flatnonzero(down < widths)]:
        start = widths.copy()
        if lowered is not None:
            start[lowered] = down[lowered]
        trials = ladder.following(np.where(np.eye(len(widths), dtype=bool), ladder.up(widths), start))
        used = load(trials)
        used[used > 1] = 0
        if used.max(initial=0) > most:
            best, most = trials[used.argmax()], used.max()
    return best


def told(name: str, value: float, unit: bool = True) -> str:
    """An amount of a cost in words.

    >>> told("macs", 20_000_000.0), told("latency_ms", 3.14159)
    ('20,000,000 MACs', '3.14 ms')
    """
    number = f"{value:,.3g}" if name == "latency_ms" else f"{int(value):,}"
    return f"{number} {UNITS[name]}" if unit else number


def _unreachable(graph: ChannelGraph, budget: Budget, constraints: Constraints, ladder: Ladder) -> str:
    limits, least, full = budget.resolve(graph), graph.costs(ladder.floor), graph.cost()
    text = ["this budget cannot be met:"]
    for name, limit in limits.items():
        smallest, whole, given = float(getattr(least, name)), getattr(full, name), budget.limits.get(name, 0)
        if smallest > limit:
            text.append(
                f"{told(name, limit)} are asked for, the smallest reachable are {told(name, smallest)} "
                f"({smallest / (whole or 1):.1%} of {told(name, whole, unit=False)})."
            )
            if 1 < given <= 100 and name != "latency_ms":
                text.append(f"{name}={given:g} is an absolute number; for {given:g} % write {given / 100:g}.")
    return " ".join([*text, _what_limits(graph, _load(graph, budget), constraints)])


def _what_limits(graph: ChannelGraph, load: Load, constraints: Constraints) -> str:
    def reachable(**relaxed: object) -> bool:
        return bool(load(replace(constraints, **relaxed).ladder(graph).floor) <= 1)  # type: ignore[arg-type]

    free = {f.name: 1 if f.name == "round_to" else f.default for f in fields(Constraints)}
    frozen = sum(g.frozen for g in graph.groups)
    if not reachable(**free):
        return (
            "Without any constraint, at one unit in each group that can shrink, it could not be met either "
            f"({frozen} of {len(graph.groups)} groups are frozen, `why` of each names the reason): raise the budget "
            "or change the model."
        )
    for name, value in free.items():
        if reachable(**{name: value}):
            given = getattr(constraints, name)
            what = f"that only {len(given)} groups may shrink" if name == "only" else f"{name}={given!r}"
            return f"What limits it is {what}; loosen it or raise the budget."
    return f"What limits it are the constraints together: {constraints!r}; loosen them or raise the budget."
