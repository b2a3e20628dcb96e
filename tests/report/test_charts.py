"""Ticks are round, and drawings hold what they were given."""

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentei.report.charts import MARKS, Chart, Series, draw
from sentei.report.ticks import ticks, told

NUMBERS = st.floats(-1e9, 1e9, allow_nan=False)


@given(NUMBERS, NUMBERS, st.integers(3, 12))
def test_ticks_cover_the_values_in_equal_round_steps(a, b, most):
    low, high = min(a, b), max(a, b)
    found = ticks(low, high, most)
    room = 1e-6 * max(abs(low), abs(high), 1e-300)
    assert 2 <= len(found) <= most
    assert found[0] <= low + room
    assert found[-1] >= high - room
    step = (found[-1] - found[0]) / (len(found) - 1)
    assert all(y - x == pytest.approx(step, rel=1e-3) for x, y in zip(found, found[1:], strict=False))
    assert any(math.isclose(step / 10 ** math.floor(math.log10(step * 1.001)), f, rel_tol=1e-2) for f in (1, 2, 2.5, 5))


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_ticks_of_counts_are_whole(a, b):
    assert all(tick == round(tick) for tick in ticks(min(a, b), max(a, b), 7, whole=True))


@given(NUMBERS, NUMBERS)
def test_no_two_ticks_read_alike(a, b):
    found = ticks(min(a, b), max(a, b), 8)
    texts = [told(v, found[1] - found[0]) for v in found]
    assert len(set(texts)) == len(texts)


def elements(svg: str, kind: str) -> list:
    root = ElementTree.fromstring(f"<all>{svg}</all>")
    return [e for e in root.iter() if kind in e.get("class", "").split()]


def test_a_chart_is_drawn_at_both_sizes_with_every_point():
    first = Series("a<b", [1, 2, 3], [0.1, 0.5, 0.2], told=["x", "<y>", "z"])
    chart = Chart("title & more", "about", "x (s)", "y (%)", (first, Series("c", [1, 3], [1, 2], 1, "marks")))
    drawn = draw(chart, "key")
    assert len(elements(drawn, "chart")) == 2
    assert len(elements(drawn, "mark")) == 2 * 5
    assert [e.text for e in elements(drawn, "label")] == ["y (%)", "x (s)"] * 2
    assert [s.name for s in chart.legend] == ["a<b", "c"]


@pytest.mark.parametrize(
    ("x", "y"),
    [([1], [5]), ([2, 2], [3, 3]), ([1, 2, 3], [1.0, math.nan, 2.0]), ([0, 1], [1e-12, 2e-12]), ([1, 2], [0, 1e12])],
)
def test_odd_values_are_drawn_too(x, y):
    drawn = draw(Chart("t", "a", "x", "y", (Series("s", x, y),)), "k")
    marks = elements(drawn, "mark")
    assert len(marks) == 2 * sum(map(math.isfinite, y))
    assert "nan" not in drawn
    assert "inf" not in drawn


def test_columns_are_as_high_as_they_say():
    drawn = draw(Chart("t", "a", "x", "y", columns=([40, 20], [10, 20])), "k")
    bars = elements(drawn, "is")[0].get("d")
    base, first, second = (float(re.findall(r"[,V]([\d.]+)", bars)[i]) for i in (0, 1, 4))
    assert (base - second) == pytest.approx(2 * (base - first), abs=0.2)


def test_error_bars_reach_as_far_as_the_spread():
    drawn = draw(Chart("t", "a", "x", "y", (Series("s", [0, 1], [5, 6], spread=[1, 0]),)), "k")
    assert len(elements(drawn, "spread")) == 2


def test_nothing_to_draw_is_known():
    assert Chart("t", "a", "x", "y", (Series("s", [1.0], [math.nan]),)).empty
    assert not Chart("t", "a", "x", "y", columns=([1], [1])).empty


def test_every_look_is_its_own():
    assert len(set(MARKS)) == len(MARKS) >= 12
