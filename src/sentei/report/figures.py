"""Figures as a page shows them: with units, standard errors and changes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from sentei.report.reading import RunFiles, is_number
from sentei.report.tables import change
from sentei.tasks.task import shown

MINUS, SPACE = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"


def standard_error(name: str, value: float | None, images: int) -> float | None:
    """Of a share of images, by the binomial distribution; None where the metric is no such share.

    >>> round(standard_error("accuracy", 0.9, 1000), 4)
    0.0095
    """
    if name != "accuracy" or value is None or not 0 <= value <= 1 or images < 1:
        return None
    return math.sqrt(value * (1 - value) / images)


def metric_told(run: RunFiles, value: float | None, split: str = "test") -> str:
    """A value of the metric on a split, with its standard error where it has one."""
    error = standard_error(run.metric, value, run.summary["data_description"][split])
    text = shown(value, run.percent)
    return text if error is None else f"{text}{SPACE}±{SPACE}{100 * error:.2f}"


def change_told(run: RunFiles, before: float | None, after: float | None) -> str:
    return signed(change(before, after, run.percent))


def signed(text: str) -> str:
    """With a minus sign in place of a hyphen.

    >>> signed("-1.50 points")
    '−1.50 points'
    """
    return text.replace("-", MINUS, 1) if text.startswith("-") and len(text) > 1 else text


def share_told(before: float, after: float) -> str:
    """A change as a share of what there was.

    >>> share_told(200, 90), share_told(0, 0)
    ('−55.0%', '-')
    """
    return signed(f"{100 * (after / before - 1):+.1f}%") if before else "-"


def left_told(before: float, after: float) -> str:
    return f"{after / before:.1%}" if before else "-"


def ms_told(value: float | None) -> str:
    """Milliseconds with three digits.

    >>> ms_told(0.01234), ms_told(12.34), ms_told(1234.5)
    ('0.0123', '12.3', '1,234')
    """
    if value is None:
        return "-"
    digits = 0 if value <= 0 else max(0, 2 - math.floor(math.log10(value)))
    return f"{value:,.{min(digits, 6)}f}"


def times_told(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """How many times as fast, with its interval."""
    if value is None:
        return "-"
    return f"{value:.2f}×" if low is None or high is None else f"{value:.2f}× ({low:.2f} to {high:.2f})"


def counted(value: object) -> str:
    """A whole number with separators; anything else as text."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else plain(value)


def plain(value: object) -> str:
    """A setting as text.

    >>> plain(None), plain(True), plain([1, 8, 8]), plain(0.00012), plain("x")
    ('-', 'yes', '1, 8, 8', '0.00012', 'x')
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value)) or "none"
    return str(value)


def flat(values: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as names with points, and texts.

    >>> dict(flat({"recipe": {"lr": 0.1}, "steps": 2}))
    {'recipe.lr': '0.1', 'steps': '2'}
    """
    for key, value in values.items():
        place = f"{name}.{key}" if name else str(key)
        if isinstance(value, Mapping) and value:
            yield from flat(value, place)
        else:
            yield place, plain(None if isinstance(value, Mapping) else value)


def seconds_told(value: float) -> str:
    """A time in the unit that suits it.

    >>> seconds_told(3.21), seconds_told(200), seconds_told(9000)
    ('3.2 s', '3.3 min', '2.5 h')
    """
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def scaled(values: list[float]) -> tuple[float, str]:
    """What to divide counts by for an axis, and the unit's prefix.

    >>> scaled([1.5e6, 3e5]), scaled([12.0])
    ((1000000.0, 'M'), (1.0, ''))
    """
    most = max((abs(v) for v in values if is_number(v)), default=0.0)
    return next(((size, unit) for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if most >= size), (1.0, ""))
