"""Charts as plain inline SVG: lines, marks and columns over round ticks, coloured by the style sheet of the page.

A chart is drawn twice, for wide and for narrow pages, because the text of an SVG shrinks with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from sentei.report.ticks import ticks, told

WIDE, NARROW = (544, 320), (336, 264)
"""Sizes in CSS pixels; the page shows neither smaller than this."""
DIGIT = 7.7
"""Room of a digit at the size of the text, 13 px, in the widest of the usual fonts."""
TOP, BOTTOM, RIGHT = 34, 46, 14
MOST_MARKS = 24
"""On a line; more points than that carry a mark now and then."""
COLOURS = 8
"""Colours of the style sheet; with the marks below, each look is its own in black and white too."""
MARKS = (
    "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0Z",
    "M-4.5,-4.5H4.5V4.5H-4.5Z",
    "M0,-6L5.5,4.5H-5.5Z",
    "M0,-6.5L5.5,0L0,6.5L-5.5,0Z",
    "M0,6L5.5,-4.5H-5.5Z",
    "M-1.8,-5.5H1.8V-1.8H5.5V1.8H1.8V5.5H-1.8V1.8H-5.5V-1.8H-1.8Z",
    "M-6,0L4.5,-5.5V5.5Z",
    "M0,-6.5L1.7,-2H6.3L2.6,0.9L4,5.5L0,2.7L-4,5.5L-2.6,0.9L-6.3,-2H-1.7Z",
    "M-3,-5.2H3L6,0L3,5.2H-3L-6,0Z",
    "M-5.3,-3.5L-3.5,-5.3L0,-1.8L3.5,-5.3L5.3,-3.5L1.8,0L5.3,3.5L3.5,5.3L0,1.8L-3.5,5.3L-5.3,3.5L-1.8,0Z",
    "M6,0L-4.5,-5.5V5.5Z",
    "M-5.5,-2.5H5.5V2.5H-5.5Z",
)
"""Outlines about (0, 0): circle, square, triangle, diamond, and so on."""
DOT = "M-2.5,0a2.5,2.5 0 1,0 5,0a2.5,2.5 0 1,0 -5,0Z"
APART = 7
"""The look, a star in the colour of text, of what all others are compared with."""


@dataclass(frozen=True)
class Series:
    """Points that belong together, drawn in one look: a colour and a mark."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    look: int = 0
    shape: Literal["line", "marks", "steps", "dots"] = "line"
    """A line with marks, marks alone, a line that goes up in steps, or small dots in the background."""
    dashed: bool = False
    spread: Sequence[float] = ()
    """Half the length of each point's error bar; 0 for none."""
    told: Sequence[str] = ()
    """What each point is, shown where the pointer rests on it."""


@dataclass(frozen=True)
class Chart:
    """What a chart shows. `x` and `y` label the axes, with their units."""

    title: str
    about: str
    """One or two sentences for those who do not see it."""
    x: str
    y: str
    series: tuple[Series, ...] = ()
    columns: tuple[Sequence[float], Sequence[float]] | None = None
    """Before and after, one column a place, in place of series."""
    zero: bool = False
    """Whether the axis of y begins at zero."""
    whole: bool = False
    """Whether x counts something, so that only whole numbers are ticks."""

    @property
    def empty(self) -> bool:
        return not any(_finite(s.x, s.y) for s in self.series) and not (self.columns and len(self.columns[0]))

    @property
    def legend(self) -> list[Series]:
        """One series of each name, where there is more than one."""
        named = {series.name: series for series in reversed(self.series)}
        return [named[name] for name in dict.fromkeys(s.name for s in self.series)] if len(named) > 1 else []

    @property
    def compares(self) -> bool:
        """Whether its columns show a change."""
        return self.columns is not None and list(self.columns[0]) != list(self.columns[1])


def draw(chart: Chart, key: str) -> str:
    """Both sizes of a chart; `key` tells its ids from those of the other charts of a page."""
    return "".join(_Drawing(chart, *size, f"{key}-{name}", name).svg() for name, size in SIZES.items())


SIZES = {"wide": WIDE, "narrow": NARROW}


def swatch(series: Series) -> str:
    """A line and a mark as a legend shows them."""
    line = '<path class="stroke" d="M1,9H33"/>' if series.shape in ("line", "steps") else ""
    mark = "" if series.shape == "steps" else f'<path class="mark" d="{_mark(series)}" transform="translate(17 9)"/>'
    return (
        f'<svg class="swatch" width="34" height="18" viewBox="0 0 34 18" aria-hidden="true">'
        f'<g class="{_classes(series)}">{line}{mark}</g></svg>'
    )


def column_swatch(kind: Literal["was", "is"]) -> str:
    """A column as a legend shows it: what there was, or what is left."""
    outline = '<path class="outline" d="M9,17V2H25V17"/>' if kind == "was" else ""
    return (
        '<svg class="swatch" width="34" height="18" viewBox="0 0 34 18" aria-hidden="true">'
        f'<path class="{kind}" d="M9,17V2H25V17Z"/>{outline}</svg>'
    )


# -- drawing


class _Drawing:
    """One chart at one size."""

    def __init__(self, chart: Chart, width: int, height: int, key: str, name: str) -> None:
        self.chart, self.width, self.height, self.key, self.name = chart, width, height, key, name
        xs, ys = _extent(chart)
        self.y_ticks = ticks(*ys, max(3, (height - TOP - BOTTOM) // 38))
        y_step = self.y_ticks[1] - self.y_ticks[0]
        self.y_told = [told(v, y_step) for v in self.y_ticks]
        self.left = round(12 + DIGIT * max(map(len, self.y_told)))
        self.right, self.bottom = width - RIGHT, height - BOTTOM
        self.low_x, self.high_x, self.x_ticks, self.x_told = self._x_axis(*xs)

    def _x_axis(self, low: float, high: float) -> tuple[float, float, list[float], list[str]]:
        """Ends of the axis and the ticks on it, as many as have room."""
        most = max(3, round((self.right - self.left) / 48))
        if self.chart.columns is not None or self.chart.whole:
            half = 0.5 if self.chart.columns is not None else 0.04 * (high - low) or 0.5
            low, high = low - half, high + half
        else:
            low, high = low - 0.06 * (high - low or 1), high + 0.06 * (high - low or 1)
        while True:
            found = ticks(low, high, most, self.chart.columns is not None or self.chart.whole)
            step = found[1] - found[0]
            kept = [v for v in found if low <= v <= high]
            if self.chart.columns is not None and kept and kept[0] != 1 and (kept[0] - 1) / step >= 0.75:
                kept = [1, *kept]
            texts = [told(v, step) for v in kept]
            room = (self.right - self.left) * step / (high - low)
            if most <= 2 or max(map(len, texts)) * DIGIT + 10 < room:
                return low, high, kept, texts
            most -= 1

    def x(self, value: float) -> float:
        return self.left + (self.right - self.left) * (value - self.low_x) / (self.high_x - self.low_x)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return self.bottom - (self.bottom - TOP) * (value - low) / (high - low)

    def svg(self) -> str:
        chart = self.chart
        ids = f"{self.key}-title {self.key}-about"
        body = self._columns(*chart.columns) if chart.columns is not None else map(self._series, chart.series)
        return "".join([
            f'<svg class="chart {self.name}" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-labelledby="{ids}">',
            f'<title id="{self.key}-title">{escape(chart.title)}</title>',
            f'<desc id="{self.key}-about">{escape(chart.about)}</desc>',
            *self._axes(), *body, "</svg>",
        ])  # fmt: skip

    def _axes(self) -> Iterable[str]:
        for value, text in zip(self.y_ticks, self.y_told, strict=True):
            y = self.y(value)
            kind = "axis" if value == self.y_ticks[0] else "grid"
            yield f'<path class="{kind}" d="M{self.left},{_n(y)}H{self.right}"/>'
            yield _text(self.left - 8, y + 4.5, text, "end", "tick")
        for value, text in zip(self.x_ticks, self.x_told, strict=True):
            x = self.x(value)
            yield f'<path class="axis" d="M{_n(x)},{self.bottom}v4"/>'
            yield _text(min(x, self.width - 2 - len(text) * DIGIT / 2), self.bottom + 19, text, "middle", "tick")
        yield _text(2, 15, _fitting(self.chart.y, self.width - 4), "start", "label")
        middle = (self.left + self.right) / 2
        room = 2 * min(middle, self.width - middle) - 4
        yield _text(middle, self.height - 7, _fitting(self.chart.x, room), "middle", "label")

    def _columns(self, before: Sequence[float], after: Sequence[float]) -> Iterable[str]:
        """What is left as columns, what there was as the outline above them."""
        base, slot = self.y(self.y_ticks[0]), self.x(2) - self.x(1)
        outline = "".join(f"{'M' if i == 1 else 'L'}{_n(self.x(i - 0.5))},{_n(self.y(v))}H{_n(self.x(i + 0.5))}"
                          for i, v in enumerate(before, 1))  # fmt: skip
        yield f'<path class="was" d="{outline}V{_n(base)}H{_n(self.x(0.5))}Z"/>'
        gap = slot * (0.15 if slot > 12 else 0.08)
        bars = "".join(f"M{_n(self.x(i - 0.5) + gap)},{_n(base)}V{_n(self.y(v))}h{_n(slot - 2 * gap)}V{_n(base)}Z"
                       for i, v in enumerate(after, 1))  # fmt: skip
        yield f'<path class="is" d="{bars}"/>'
        yield f'<path class="outline" d="M{_n(self.x(0.5))},{_n(base)}L{outline[1:]}V{_n(base)}"/>'

    def _series(self, series: Series) -> str:
        points = _finite(series.x, series.y)
        places = [(self.x(x), self.y(y)) for x, y, _ in points]
        every = -(-len(points) // MOST_MARKS) if series.shape == "line" else 1
        parts = [f'<g class="{_classes(series)}">']
        if series.shape in ("line", "steps") and len(places) > 1:
            parts.append(f'<path class="stroke" d="{_path(places, series.shape == "steps")}"/>')
        for (px, py), (_, y, i) in zip(places, points, strict=True):
            spread = series.spread[i] if i < len(series.spread) else 0
            if spread:
                low, high = self.y(y - spread), self.y(y + spread)
                parts.append(f'<path class="spread" d="M{_n(px - 4)},{_n(low)}h8m-4,0V{_n(high)}m-4,0h8"/>')
            if series.shape != "steps" and i % every == 0:
                about = f"<title>{escape(series.told[i])}</title>" if i < len(series.told) else ""
                place = f"translate({_n(px)} {_n(py)})"
                parts.append(f'<path class="mark" d="{_mark(series)}" transform="{place}">{about}</path>')
        return "".join([*parts, "</g>"])


def _extent(chart: Chart) -> tuple[tuple[float, float], tuple[float, float]]:
    if chart.columns is not None:
        before, after = chart.columns
        return (1, len(before)), (0, max([*before, *after, 0]) or 1)
    found = [(s, p) for s in chart.series for p in _finite(s.x, s.y)]
    xs = [x for _, (x, _, _) in found]
    reach = [s.spread[i] if i < len(s.spread) else 0.0 for s, (_, _, i) in found]
    ys = [y + side * r for (_, (_, y, _)), r in zip(found, reach, strict=True) for side in (-1, 1)]
    return (min(xs), max(xs)), (min([*ys, *([0.0] if chart.zero else [])]), max(ys))


def _finite(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float, int]]:
    """Points that can be drawn, with their places among all."""
    pairs = enumerate(zip(xs, ys, strict=True))
    return [(x, y, i) for i, (x, y) in pairs if math.isfinite(x) and math.isfinite(y)]


def _path(places: Sequence[tuple[float, float]], steps: bool) -> str:
    (x, y), *rest = places
    join = "H{}V{}" if steps else "L{},{}"
    return f"M{_n(x)},{_n(y)}" + "".join(join.format(_n(x), _n(y)) for x, y in rest)


def _mark(series: Series) -> str:
    return DOT if series.shape == "dots" else MARKS[series.look % len(MARKS)]


def _classes(series: Series) -> str:
    return f"series c{series.look % COLOURS}{' dashed' * series.dashed} {series.shape}"


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> str:
    return f'<text class="{kind}" x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}">{escape(text)}</text>'


def _fitting(text: str, room: float) -> str:
    most = int(room / DIGIT)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
