"""Stage tables merged under a budget: the best choice of one row a stage, by dynamic programming."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sentei.errors import BudgetError


@dataclass(frozen=True, eq=False)
class Table:
    """Versions of one stage: what each costs, how far it is from the full stage, and which widths it starts and ends
    with. Arrays [rows]; `entry` and `exit` number the widths at the boundaries from 0, the same in the two tables
    beside a boundary."""

    cost: np.ndarray
    distance: np.ndarray
    entry: np.ndarray
    exit: np.ndarray


@dataclass(frozen=True)
class Merged:
    """One row of each table. `cost` and `distance` are the sums."""

    rows: tuple[int, ...]
    cost: float
    distance: float


def merge(tables: Sequence[Table], limit: float, *, top: int = 1, bins: int = 2000) -> list[Merged]:
    """The `top` choices with the least total distance whose total cost is at most `limit`.

    Each stage must start with the widths that the one before ends with. Costs are counted in at most `bins` steps
    above the smallest total and rounded up, so that the limit holds exactly; where the costs are integers and
    the steps suffice for them, so does the optimum. Equal distances go by cost, then by rows. BudgetError if nothing
    fits.

    >>> one = np.zeros(2, np.int64)
    >>> table = Table(np.array([1.0, 3.0]), np.array([0.5, 0.1]), one, one)
    >>> merge([table, table], 4.0)
    [Merged(rows=(0, 1), cost=4.0, distance=0.6)]
    """
    least = [float(t.cost.min()) for t in tables]
    slack = limit - sum(least)
    if slack < 0:
        raise BudgetError(f"the narrowest versions of all stages cost {sum(least):,g}, more than {limit:,g}")
    counts = all(np.array_equal(t.cost, np.round(t.cost)) for t in tables)
    step = max(1.0, slack / bins) if counts else slack / bins or 1.0
    steps = [np.ceil((t.cost - low) / step - 1e-9).astype(np.int64) for t, low in zip(tables, least, strict=True)]
    size = int(slack / step + 1e-9) + 1
    best = {int(e): np.full((size, top), np.inf) for e in np.unique(tables[0].entry)}
    for sums in best.values():
        sums[0, 0] = 0.0
    trail: list[dict[int, tuple[np.ndarray, np.ndarray]]] = []
    for table, cost in zip(tables, steps, strict=True):
        reached = {int(s): _reach(best, table, cost, int(s), top) for s in np.unique(table.exit)}
        trail.append({s: (rows, ranks) for s, (_, rows, ranks) in reached.items()})
        best = {s: sums for s, (sums, _, _) in reached.items()}
    found = [
        _follow(tables, steps, trail, state, place, rank)
        for state, sums in best.items()
        for place, rank in _smallest(sums, top)
    ]
    if not found:
        raise BudgetError(f"no versions of the stages that fit together cost at most {limit:,g}")
    return sorted(found, key=lambda m: (m.distance, m.cost, m.rows))[:top]


def _reach(
    best: dict[int, np.ndarray], table: Table, cost: np.ndarray, state: int, top: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each total cost: the least sums that end in `state`, and the row and the rank before that lead there."""
    size = next(iter(best.values())).shape[0]
    rows = np.flatnonzero((table.exit == state) & np.isin(table.entry, list(best)) & (cost < size))
    rows = rows[_worth_keeping(table, cost, rows, top)]
    sums, by_row, by_rank = np.full((size, top), np.inf), np.full((size, top), -1), np.full((size, top), -1)
    if not len(rows):
        return sums, by_row, by_rank
    before = np.stack([best[int(e)] for e in table.entry[rows]]) if len(best) > 1 else None
    only = next(iter(best.values()))
    for place in range(size):
        back = place - cost[rows]
        fits = np.flatnonzero(back >= 0)
        past = only[back[fits]] if before is None else before[fits, back[fits]]
        total = (past + table.distance[rows[fits], None]).ravel()
        order = np.argsort(total, kind="stable")[:top]
        order = order[np.isfinite(total[order])]
        sums[place, : len(order)] = total[order]
        by_row[place, : len(order)] = rows[fits[order // top]]
        by_rank[place, : len(order)] = order % top
    return sums, by_row, by_rank


def _worth_keeping(table: Table, cost: np.ndarray, rows: np.ndarray, top: int) -> np.ndarray:
    """Places in `rows` of the `top` least distances for each entry and cost: no other row can be in a best choice."""
    order = np.lexsort((rows, table.cost[rows], table.distance[rows], cost[rows], table.entry[rows]))
    key = np.stack([table.entry[rows], cost[rows]])[:, order]
    new = np.flatnonzero(np.r_[True, (key[:, 1:] != key[:, :-1]).any(0)]) if len(order) else np.zeros(0, np.int64)
    nth = np.arange(len(order)) - np.repeat(new, np.diff(np.r_[new, len(order)]))
    return np.sort(order[nth < top])


def _smallest(sums: np.ndarray, top: int) -> list[tuple[int, int]]:
    flat = np.argsort(sums, axis=None, kind="stable")[:top]
    return [(int(i) // sums.shape[1], int(i) % sums.shape[1]) for i in flat if np.isfinite(sums.flat[i])]


def _follow(
    tables: Sequence[Table], steps: Sequence[np.ndarray], trail: Sequence[dict[int, tuple[np.ndarray, np.ndarray]]],
    state: int, place: int, rank: int,
) -> Merged:  # fmt: skip
    """The rows that led to a sum, last stage first."""
    rows: list[int] = []
    for i in reversed(range(len(tables))):
        by_row, by_rank = trail[i][state]
        row, rank = int(by_row[place, rank]), int(by_rank[place, rank])
        rows.append(row)
        place, state = place - int(steps[i][row]), int(tables[i].entry[row])
    rows.reverse()
    cost = float(sum(t.cost[r] for t, r in zip(tables, rows, strict=True)))
    total = float(sum(t.distance[r] for t, r in zip(tables, rows, strict=True)))
    return Merged(tuple(rows), cost, total)
