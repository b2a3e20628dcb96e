"""Live bars for long jobs: on a terminal or in a notebook only, and gone when the job is done."""

from __future__ import annotations

from importlib.util import find_spec

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from sentei.console import screen


class Times(ProgressColumn):
    """Time spent and time left, by name."""

    def render(self, task: Task) -> Text:
        left = "-" if task.time_remaining is None else f"{task.time_remaining:,.0f} s"
        return Text(f"{task.elapsed or 0:,.0f} s spent, {left} left")


def live_bar(shown: bool, counted: bool = False, times: bool = True) -> Progress:
    """A bar with a description, a status (or, where `counted`, how many are done) and times; add a task to it."""
    status = MofNCompleteColumn() if counted else TextColumn("{task.fields[status]}")
    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(bar_width=20), status]
    console = screen()
    notebook = console.is_jupyter and find_spec("ipywidgets") is not None  # without them a bar would be a warning
    off = not shown or not (console.is_terminal or notebook)
    return Progress(*columns, *([Times()] if times else []), console=console, disable=off, transient=True)
