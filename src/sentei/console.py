"""The terminal: results and talk on stdout, errors on stderr. All that is shown goes through one console, so that lines
do not break into a live bar or table."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text

LOG_WIDTH = 100
"""A log has room for whole tables; a terminal has its own width."""

_shown: dict[str, Any] = {"key": None, "console": None, "aside": False, "hushed": False}


def screen() -> Console:
    """Where everything is shown: stdout, or stderr while `talk_on_stderr` holds."""
    stream = sys.stderr if _shown["aside"] else sys.stdout
    told = (_shown["aside"], _shown["hushed"], os.environ.get("COLUMNS"))
    key = (id(getattr(stream, "rich_proxied_file", stream)), *told)
    if _shown["key"] != key:
        _shown.update(key=key, console=_console(stderr=_shown["aside"], quiet=_shown["hushed"]))
    console: Console = _shown["console"]
    return console


def stderr() -> Console:
    return _console(stderr=True)


def say(line: str) -> None:
    """One plain line: long ones wrap on a terminal and stay whole in a file."""
    console = screen()
    console.print(Text(line), soft_wrap=not console.is_terminal)
    console.file.flush()


@contextmanager
def talk_on_stderr(on: bool = True) -> Iterator[None]:
    """Keep stdout free for a result that a program reads."""
    before = _shown["aside"]
    _shown["aside"] = on
    try:
        yield
    finally:
        _shown["aside"] = before


@contextmanager
def hushed(on: bool = True) -> Iterator[None]:
    """Show nothing; errors are told all the same."""
    before = _shown["hushed"]
    _shown["hushed"] = on
    try:
        yield
    finally:
        _shown["hushed"] = before


def _console(stderr: bool, quiet: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False, quiet=quiet)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(stderr=stderr, highlight=False, width=LOG_WIDTH, quiet=quiet)
