"""Comparisons as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from sentei.comparison.file import Comparison
from sentei.comparison.finished import Row, told_latency
from sentei.comparison.results import title, told
from sentei.report.tables import count, table
from sentei.tasks.task import shown


def runs_table(rows: Sequence[Row]) -> Table:
    """A line for each network: what it reaches, what it costs, what it took."""
    names = list(dict.fromkeys(row.metric["name"] for row in rows))
    metric = names[0] if len(names) == 1 else "metric"
    latency = ["latency"] if any(row.latency for row in rows) else []
    gaps = ["to dense"] if any(row.to_dense is not None for row in rows) else []
    columns = (f"test {metric}", *gaps, "val", "MACs", "params", *latency, "seconds", "trained on")
    out = table("Runs side by side", "run", *columns)
    for row in rows:
        own = "" if len(names) == 1 else f" {row.metric['name']}"
        percent = row.metric["percent"]
        out.add_row(
            row.name, with_error(row.test, row.test_error, percent) + own, *([_to_dense(row)] if gaps else []),
            shown(row.val, percent),
            f"{count(row.macs)}\n{part(row.macs_share)}", f"{count(row.params)}\n{part(row.params_share)}",
            *([milliseconds(row.latency)] if latency else []), seconds(row.seconds), phases(row.images),
        )  # fmt: skip
    return out


def _to_dense(row: Row) -> str:
    if row.to_dense is None:
        return ""
    return f"{told(row.to_dense, row.metric, False)}{_plus_minus(row.to_dense_error, row.metric['percent'])}"


def seen(rows: Sequence[Row]) -> str | None:
    """One line on the data that all rows share; None where they differ."""
    first = rows[0].data
    if any(row.data != first for row in rows):
        return None
    sizes = ", ".join(f"{first[name]:,} {told}" for name, told in SPLITS.items() if first.get(name) is not None)
    return f"All on {first['name']}: {sizes} images, the same content (checksum {first['content']})."


SPLITS = {"train": "training", "val": "validation", "test": "test"}


def timed(rows: Sequence[Row]) -> str | None:
    """One line on how latencies were measured, where there are any, and all alike."""
    found = [row.latency for row in rows if row.latency]
    alike = {told_latency(latency) for latency in found}
    by = "" if any(latency.get("by") for latency in found) else ", by `sentei bench`"
    return f"Latency: {alike.pop()}{by}." if len(alike) == 1 else None


def with_error(value: float | None, error: float | None, percent: bool) -> str:
    """A figure and its standard error."""
    return shown(value, percent) + ("" if value is None else _plus_minus(error, percent))


def _plus_minus(error: float | None, percent: bool) -> str:
    if error is None:
        return ""
    return f"\n± {100 * error:.2f}" if percent else f"\n± {error:.2g}"


SHORT = {"finetune": "tuning"}


def part(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def milliseconds(latency: Mapping[str, Any] | None) -> str:
    ms = (latency or {}).get("ms")
    return "-" if ms is None else f"{ms:.3g} ms"


def phases(images: Mapping[str, float] | None) -> str:
    """Images by phase, one a line; the total alone where there was one phase.

    >>> phases({"search": 0, "supernet": 1200, "finetune": 2400, "total": 3600})
    '3.60 k\\n1.20 k supernet\\n2.40 k tuning'
    """
    if images is None:
        return "-"
    parts = [f"{count(n)} {SHORT.get(phase, phase)}" for phase, n in images.items() if phase != "total" and n]
    return "\n".join([count(images["total"]), *(parts if len(parts) > 1 else [])])


# -- a comparison


def comparison_tables(found: Comparison) -> list[Table]:
    """A table for each budget: the methods, what they reach and what it took."""
    return [_budget_table(found, budget) for budget in found.plan["budgets"]]


def _budget_table(found: Comparison, budget: Mapping[str, float]) -> Table:
    plan, figure = found.plan, found.figure
    metric, percent = plan["metric"]["name"], plan["metric"]["percent"]
    groups = [g for g in found.results if g["budget"] == budget]
    timed = any(g["ms"] is not None for g in groups)
    out = table(
        f"{plan['model']} on {plan['data']}, {title(budget)}", "method", f"{figure} {metric}", "to uniform",
        *(["val"] if figure == "test" else []), "MACs", "params", *["ms"] * timed, "seconds", "trained on",
    )  # fmt: skip
    out.columns[0].no_wrap = True
    if (dense := plan["dense"]) is not None:
        val = [shown(dense["val"], percent)] if figure == "test" else []
        costs = [count(dense["macs"]), count(dense["params"])]
        ms = [f"{dense['ms']:.3g}" if dense.get("ms") else "-"] * timed
        out.add_row("dense", shown(dense[figure], percent), "", *val, *costs, *ms, "", "")
    for group in groups:
        val = [_mean(group["val"], percent)] if figure == "test" else []
        costs = [_cost(group[name], group[f"{name}_share"]) for name in ("macs", "params")]
        costs += ["-" if group["ms"] is None else f"{group['ms']:.3g}\n{part(group['ms_share'])}"] * timed
        took = seconds(group["seconds"] and group["seconds"]["mean"]), phases(group["images"] or None)
        out.add_row(group["method"], _mean(group[figure], percent), _gap(group, plan["metric"]), *val, *costs, *took)
    return out


def _mean(spread: Mapping[str, Any] | None, percent: bool) -> str:
    """Mean and standard deviation over seeds."""
    if spread is None:
        return "-"
    return with_error(spread["mean"], spread["deviation"], percent)


def _gap(group: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    gap = group["difference"]
    if gap is None:
        return ""
    mark = " *" if gap["told_apart"] else ""
    ends = "" if gap["low"] is None else "\n" + " .. ".join(told(gap[end], metric, False) for end in ("low", "high"))
    return f"{told(gap['mean'], metric, False)}{mark}{ends}"


def _cost(value: float | None, share: float | None) -> str:
    return "-" if value is None else f"{count(value)}\n{part(share)}"


def remarks(found: Comparison) -> list[str]:
    """What is to be said below the tables: how to read them, what differs, what failed, what is missing."""
    plan, results = found.plan, found.results
    seeds = max((g["finished"] for g in results), default=0)
    lines = []
    if seeds > 1:
        star = "; * told apart" if any(map(_apart, results)) else ""
        lines.append(
            f"± is the standard deviation over {seeds} seeds; `to uniform` is the mean of differences at the same "
            f"seed, with a 95 % interval{star}."
        )
    lines += found.sentences
    lines += [f"{g['method']} at {title(g['budget'])} failed: {error}" for g in results for error in g["failed"]]
    totals = [run["result"]["images"]["total"] for run in found.runs if run["result"]]
    if totals and max(totals) - min(totals) < plan["batch_images"]:
        lines.append(f"Each run trained on {max(totals):,} images in all, give or take a batch.")
    elif totals:
        lines.append(f"Warning: the runs did not train on equally many images: {min(totals):,} to {max(totals):,}.")
    if waiting := sum(run["state"] == "waiting" for run in found.runs):
        lines.append(f"{waiting} of {len(found.runs)} runs are not made yet; the command that began them goes on.")
    return lines


def _apart(group: Mapping[str, Any]) -> bool:
    return bool(group["difference"] and group["difference"]["told_apart"])
