"""What a page consists of, as plain data: the template knows these kinds and nothing of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from sentei.report.charts import Chart


@dataclass(frozen=True)
class Headline:
    """One of the figures that matter most: what it is now, what it was, and how that differs."""

    name: str
    now: str
    before: str = ""
    change: str = ""
    about: str = ""


@dataclass(frozen=True)
class Text:
    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Warnings:
    """What a reader must not miss, one line each."""

    kind: ClassVar[str] = "warnings"
    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows of texts; the first `left` columns hold names, the others numbers."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    folded: bool = False
    """Whether it is shown only when asked for, and in print."""
    beside: bool = False
    """Whether it stands beside the figure before it, where the page is wide."""


@dataclass(frozen=True)
class Figure:
    kind: ClassVar[str] = "figure"
    chart: Chart


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    kind: ClassVar[str] = "facts"
    caption: str
    pairs: Sequence[tuple[str, str]]
    folded: bool = False


@dataclass(frozen=True)
class Code:
    kind: ClassVar[str] = "code"
    caption: str
    text: str


Block = Text | Warnings | Table | Figure | Facts | Code


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """One HTML page."""

    title: str
    lead: str
    """What came out, in a sentence or two."""
    headlines: Sequence[Headline]
    sections: Sequence[Section]
    foot: str
