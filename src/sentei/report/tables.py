"""Tables for the terminal, plain enough for a log file and 80 columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from sentei.answers import error_to_dense
from sentei.graph import ChannelGraph, Group
from sentei.graph.cost import COUNTS
from sentei.graph.graph import HasKeep
from sentei.plan import Constraints
from sentei.tasks.task import shown

MOST_ROWS = 32
BAR = 20
RISES = 8


class Titled(Table):
    """A table whose title may be longer than its rows."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        title, self.title = self.title, None
        try:
            if title:
                yield Text(str(title), "bold")
            yield from super().__rich_console__(console, options)
        finally:
            self.title = title


def table(title: str, *columns: str, left: int = 1) -> Table:
    """A table whose first `left` columns hold text and whose other columns hold numbers."""
    out = Titled(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        out.add_column(name, justify="left" if i < left else "right", overflow="fold")
    return out


def count(value: float) -> str:
    """A count with three or four digits and a unit: 41.2 M.

    >>> count(41_214_000), count(950)
    ('41.21 M', '950')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def before_after(summary: Mapping[str, Any]) -> Table:
    """The metric, MACs and parameters of the network before and after pruning."""
    base, pruned = summary["base"], summary["pruned"]
    taught = ", taught by the original" if summary.get("taught") else ""
    title = f"{summary['model']} on {summary['data']}, method {summary['method']}{taught}"
    out = table(title, "", "before", "after", "change")
    metric, share = summary["metric"]["name"], summary["metric"]["percent"]
    for name, key in ((f"test {metric}", metric), (f"validation {metric}", f"val_{metric}")):
        a, b = base[key], pruned[key]
        out.add_row(name, shown(a, share), shown(b, share), change(a, b, share))
    for name, key in (("MACs", "macs"), ("parameters", "params")):
        a, b = base[key], pruned[key]
        out.add_row(name, count(a), count(b), f"{b / max(a, 1) - 1:+.1%}")
    if (measured := summary.get("latency")) is not None:
        a, b = measured["dense_ms"], measured["small_ms"]
        out.add_row(f"ms in {measured['runtime']}", f"{a:.3g}", f"{b:.3g}", f"{b / a - 1:+.1%}")
    return out


def change(before: float | None, after: float | None, share: bool) -> str:
    if before is None or after is None:
        return "-"
    return f"{100 * (after - before):+.2f} points" if share else f"{after - before:+.4g}"


def within_error(summary: Mapping[str, Any]) -> str | None:
    """A sentence where the accuracy before and after differ by no more than chance may bring about; None elsewhere."""
    images = summary["data_description"]["test"]
    a, b = summary["base"].get("accuracy"), summary["pruned"].get("accuracy")
    if a is None or b is None or not images:
        return None
    error = error_to_dense(summary.get("answers")) or math.sqrt((a * (1 - a) + b * (1 - b)) / images)
    if abs(a - b) > error:
        return None
    return (
        f"On {images:,} test images a difference of {100 * (b - a):+.2f} points is within one standard error "
        f"({100 * error:.2f} points)."
    )


def search_table(search: Mapping[str, Any], metric: Mapping[str, Any]) -> Table:
    """What a search over widths did, and how its best fitness rose."""
    out = table("Search", "structures", f"best {metric['name']}")
    curve = search["curve"]
    rises = [c for before, c in zip([[0, float("-inf")], *curve], curve, strict=False) if c[1] > before[1]]
    for evaluated, best in rises[-RISES:]:
        out.add_row(str(evaluated), shown(-best if metric["lower_is_better"] else best, metric["percent"]))
    return out


def widths_table(widths: Mapping[str, Sequence[int]]) -> Table:
    """Units per group before and after, neighbours with equal widths on one line; the longest lists are cut short."""
    rows: list[tuple[list[str], int, int]] = []
    for name, (before, after) in widths.items():
        if rows and rows[-1][1:] == (before, after):
            rows[-1][0].append(name)
        else:
            rows.append(([name], before, after))
    out = table("Widths", "group", "", "before", "after", left=2)
    shown = rows if len(rows) <= MOST_ROWS else rows[: MOST_ROWS - 1]
    for names, before, after in shown:
        title = names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]} ({len(names)})"
        out.add_row(title, bar(after / before), str(before), str(after))
    if len(shown) < len(rows):
        out.add_row(f"... {len(rows) - len(shown)} more lines (see summary.json)", "", "", "")
    return out


def bar(share: float) -> str:
    full = round(share * BAR)
    return "█" * full + "░" * (BAR - full)


def smallest(graph: ChannelGraph, constraints: Constraints) -> dict[str, int]:
    """The least that a plan may cost under these constraints, as budgets that cannot be met are refused with."""
    least = graph.costs(constraints.ladder(graph).floor)
    return {name: int(getattr(least, name)) for name in COUNTS}


def cost_table(name: str, graph: ChannelGraph, constraints: Constraints) -> Table:
    """What the network costs, what part of it is prunable, and the smallest that can be reached."""
    full, least = graph.cost(), smallest(graph, constraints)
    macs, params = graph.prunable()
    out = table(f"{name} on an input of {graph.inputs}", "", "total", "prunable", "smallest reachable")
    share = {k: f"({v / max(getattr(full, k), 1):.1%})" for k, v in least.items()}
    out.add_row("MACs", f"{full.macs:,}", f"{macs:.1%}", f"{least['macs']:,} {share['macs']}")
    out.add_row("parameters", f"{full.params:,}", f"{params:.1%}", f"{least['params']:,} {share['params']}")
    megabytes = f"{least['activation_bytes'] / 1e6:.2f} MB {share['activation_bytes']}"
    out.add_row("activations", f"{full.activation_bytes / 1e6:.2f} MB", "", megabytes)
    peak = f"{least['memory'] / 1e6:.2f} MB {share['memory']}"
    out.add_row("peak memory", f"{full.memory / 1e6:.2f} MB", "", peak)
    return out


def frozen_table(graph: ChannelGraph) -> Table | None:
    """What cannot be pruned, by reason, with the share of the cost that only frozen groups touch; None if nothing."""
    reasons: dict[str, list[int]] = {}
    for i, group in enumerate(graph.groups):
        if group.frozen:
            reasons.setdefault(group.why or "", []).append(i)
    if not reasons:
        return None
    full = graph.cost()
    rigid = np.where([g.frozen for g in graph.groups], graph.widths(), 0)
    left = graph.costs(rigid)
    out = table("Frozen", "why", "groups", "units", "MACs", "params")
    for why, members in reasons.items():
        without = rigid.copy()
        without[members] = 0
        rest = graph.costs(without)
        held = (
            float(getattr(left, k) - getattr(rest, k)) / max(getattr(full, k), 1) for k in ("macs", "params")
        )
        out.add_row(why, str(len(members)), str(int(graph.widths()[members].sum())), *(f"{h:.1%}" for h in held))
    out.caption = "MACs and params: share that these groups hold and no prunable group touches"
    out.caption_justify = "left"
    return out


def group_table(graph: ChannelGraph, plan: HasKeep | None = None) -> Table:
    """Every group: its width (and what a plan keeps), how many places it has in parameters, and why it is frozen."""
    kept = graph.widths(plan)
    extra = ("kept",) if plan else ()
    out = table("Groups", "group", "width", *extra, "places", "frozen because")
    out.columns[-1].justify = "left"
    for group, width in zip(graph.groups, kept.tolist(), strict=True):
        out.add_row(group.name, str(group.width), *([str(width)] if plan else []), _places(group), group.why or "")
    return out


def _places(group: Group) -> str:
    return str(len(group.members))
