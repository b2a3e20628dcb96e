"""Scatter plots side by side as one SVG, without a plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

SIDE, GAP, LEFT, TOP, COLUMNS = 180, 60, 60, 46, 3


def scatter(
    panels: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    hollow: Sequence[bool] = (),
    notes: Mapping[str, str] | None = None,
) -> str:
    """SVG text with a panel for each entry of `panels` (name -> x, y), each with axes of its own.

    Points with `hollow` are rings; `notes` are short lines below the names.
    """
    rows = -(-len(panels) // COLUMNS)
    width = LEFT + min(len(panels), COLUMNS) * (SIDE + GAP)
    height = TOP + rows * (SIDE + GAP + 24) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="{width / 2:.0f}" y="18" text-anchor="middle" font-size="14">{escape(title)}</text>',
    ]
    for i, (name, (x, y)) in enumerate(panels.items()):
        left, top = LEFT + (i % COLUMNS) * (SIDE + GAP), TOP + 24 + (i // COLUMNS) * (SIDE + GAP + 24)
        parts += _panel(np.asarray(x, float), np.asarray(y, float), left, top, hollow)
        parts.append(_text(left + SIDE / 2, top - 18, name, "middle", bold=True))
        parts.append(_text(left + SIDE / 2, top - 5, (notes or {}).get(name, ""), "middle"))
        parts.append(_text(left + SIDE / 2, top + SIDE + 30, xlabel, "middle"))
        if i % COLUMNS == 0:
            middle = top + SIDE / 2
            parts.append(
                f'<text x="14" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 14 {middle:.0f})">'
                f"{escape(ylabel)}</text>"
            )
    return "\n".join([*parts, "</svg>\n"])


def _panel(x: np.ndarray, y: np.ndarray, left: float, top: float, hollow: Sequence[bool]) -> list[str]:
    px, py = left + SIDE * _unit(x), top + SIDE * (1 - _unit(y))
    out = [f'<rect x="{left}" y="{top}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#999"/>']
    for i, (a, b) in enumerate(zip(px, py, strict=True)):
        fill = "none" if i < len(hollow) and hollow[i] else "#1f77b4"
        out.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{fill}" stroke="#1f77b4"/>')
    for values, place in ((x, "x"), (y, "y")):
        low, high = f"{values.min():.4g}", f"{values.max():.4g}"
        if place == "x":
            out += [_text(left, top + SIDE + 14, low, "start"), _text(left + SIDE, top + SIDE + 14, high, "end")]
        else:
            out += [_text(left - 4, top + SIDE, low, "end"), _text(left - 4, top + 10, high, "end")]
    return out


def _unit(values: np.ndarray) -> np.ndarray:
    """To 0.05..0.95; a constant lies in the middle."""
    span = np.ptp(values)
    return np.full(len(values), 0.5) if span == 0 else 0.05 + 0.9 * (values - values.min()) / span


def _text(x: float, y: float, text: str, anchor: str, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'
