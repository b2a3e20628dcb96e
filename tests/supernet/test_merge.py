"""The merge of stage tables against every choice there is."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentei.errors import BudgetError
from sentei.supernet.merge import Table, merge


@st.composite
def chains(draw):
    """A few small tables with integer costs, distances with ties, and one to three widths at each boundary."""
    stages = draw(st.integers(1, 4))
    ends = [1, *(draw(st.integers(1, 3)) for _ in range(stages - 1)), 1]
    tables = []
    for i in range(stages):
        n = draw(st.integers(1, 6))

        def ints(low, high, n=n):
            return np.array(draw(st.lists(st.integers(low, high), min_size=n, max_size=n)))

        tables.append(Table(ints(1, 30).astype(float), ints(0, 8) / 8, ints(0, ends[i] - 1), ints(0, ends[i + 1] - 1)))
    return tables, draw(st.integers(1, 120)), draw(st.integers(1, 5))


def every_choice(tables, limit):
    """(distance, cost) of all rows that chain and fit, best first."""
    found = []
    for rows in itertools.product(*(range(len(t.cost)) for t in tables)):
        chained = all(a.exit[i] == b.entry[j] for (a, i), (b, j) in itertools.pairwise(zip(tables, rows, strict=True)))
        cost = sum(t.cost[r] for t, r in zip(tables, rows, strict=True))
        if chained and cost <= limit:
            found.append((sum(t.distance[r] for t, r in zip(tables, rows, strict=True)), cost))
    return sorted(found)


@given(chains())
def test_equals_brute_force_with_integer_costs(drawn):
    tables, limit, top = drawn
    expected = every_choice(tables, limit)
    if not expected:
        with pytest.raises(BudgetError):
            merge(tables, limit, top=top)
        return
    found = merge(tables, limit, top=top)
    assert [m.distance for m in found] == [d for d, _ in expected[:top]]
    assert len({m.rows for m in found}) == len(found)
    for m in found:
        assert m.cost == sum(t.cost[r] for t, r in zip(tables, m.rows, strict=True)) <= limit
        assert all(a.exit[i] == b.entry[j] for (a, i), (b, j) in itertools.pairwise(zip(tables, m.rows, strict=True)))
    assert merge(tables, limit, top=top) == found


@given(chains(), st.integers(1, 7))
def test_few_bins_never_break_the_limit(drawn, bins):
    tables, limit, _ = drawn
    try:
        found = merge([Table(1e6 * t.cost, t.distance, t.entry, t.exit) for t in tables], 1e6 * limit, bins=bins)
    except BudgetError:
        return
    assert found[0].cost <= 1e6 * limit
    assert found[0].distance >= every_choice(tables, limit)[0][0]


def test_ties_go_to_the_cheaper_then_to_the_first_row():
    none = np.zeros(3, np.int64)
    table = Table(np.array([2.0, 1.0, 1.0]), np.array([0.5, 0.5, 0.5]), none, none)
    assert [m.rows for m in merge([table], 2, top=3)] == [(1,), (2,), (0,)]


def test_the_limit_may_be_the_least_cost_and_no_less():
    none = np.zeros(2, np.int64)
    table = Table(np.array([3.0, 4.0]), np.array([0.5, 0.1]), none, none)
    assert merge([table, table], 6)[0].rows == (0, 0)
    with pytest.raises(BudgetError, match="narrowest versions of all stages cost 6, more than 5"):
        merge([table, table], 5)
