"""The two consoles: results on stdout, errors on stderr."""

from __future__ import annotations

import os

from rich.console import Console
from rich.text import Text


def stdout() -> Console:
    return Console(highlight=False, width=_width())


def stderr() -> Console:
    return Console(stderr=True, highlight=False, width=_width())


def say(line: str) -> None:
    """One plain line: long ones wrap on a terminal and stay whole in a file."""
    console = stdout()
    console.print(Text(line), soft_wrap=not console.is_terminal)


def _width() -> int | None:
    """A log has room for whole tables; a terminal has its own width."""
    console = Console()
    return None if console.is_terminal or "COLUMNS" in os.environ else 100
