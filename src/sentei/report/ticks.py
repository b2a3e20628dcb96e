"""Round numbers for axes."""

from __future__ import annotations

import math
from collections.abc import Iterable


def ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, `most` of them at most.

    >>> ticks(0.13, 0.94, 6)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> ticks(1, 12, 5, whole=True)
    [0.0, 5.0, 10.0, 15.0]
    """
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(low) * 0.05 or 1.0
        low, high = low - room, high + room
    for step in _steps((high - low) / max(most - 1, 1), whole):
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first < most:
            return [float(f"{i * step:.12g}") for i in range(first, last + 1)]
    raise AssertionError("steps grow without end")


def _steps(least: float, whole: bool) -> Iterable[float]:
    """1, 2, 2.5, 5, 10, ... times a power of ten, from about `least` up."""
    power = math.floor(math.log10(least))
    while True:
        for factor in (1, 2, 2.5, 5):
            step = factor * 10.0**power
            if not whole or step == round(step) and step >= 1:
                yield step
        power += 1


def told(value: float, step: float) -> str:
    """A tick's number with the digits that the step needs.

    >>> told(0.25, 0.25), told(1500.0, 500.0), told(0.0, 0.2)
    ('0.25', '1,500', '0.0')
    """
    if max(abs(value), step) >= 1e6 or step < 1e-4:
        digits = max(2, 1 + math.ceil(math.log10(max(abs(value) / step, 1))))
        return f"{value:.{digits}g}"
    digits = next(d for d in range(8) if abs(step * 10**d - round(step * 10**d)) < 1e-6)
    return f"{value:,.{digits}f}"
