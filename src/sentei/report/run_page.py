"""The page of one run: what came out, why it can be trusted, how it was made, and how to use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sentei.report import courses, layers
from sentei.report.blocks import Block, Facts, Headline, Page, Section, Table, Text, Warnings
from sentei.report.figures import (
    change_told,
    counted,
    flat,
    left_told,
    metric_told,
    ms_told,
    plain,
    seconds_told,
    share_told,
    times_told,
)
from sentei.report.loading import how_to_load
from sentei.report.reading import Record, RunFiles, is_number
from sentei.report.tables import count, within_error
from sentei.tasks.task import shown


def run_page(run: RunFiles) -> Page:
    """The page of a finished run of `sentei prune`, `sentei.prune` or `sentei train`."""
    summary = run.summary
    method = f", pruned by {summary['method']}" if run.pruned else ", trained"
    sections = _pruned(run) if run.pruned else [layers.depth(run), courses.training(run), layers.speed(run)]
    rest = [_export(run), _data(run), how_to_load(run), _made(run)]
    return Page(
        f"{summary['model']} on {summary['data']}{method}",
        _lead(run), list(_headlines(run)), [s for s in [_warned(run), *sections, *rest] if s is not None],
        f"Run {run.folder.name}, made by sentei {run.config['sentei']}",
    )  # fmt: skip


def _pruned(run: RunFiles) -> list[Section | None]:
    summary = run.summary
    found: list[Section | None] = [_steps(run), layers.depth(run), layers.speed(run), _proof(run)]
    if "search" in summary:
        found.append(courses.search(run, summary["search"]))
    if "ista" in summary:
        found.append(courses.ista(run, summary["ista"]))
    if "stagewise" in summary:
        found += courses.stagewise(run, summary["stagewise"])
    return [*found, courses.training(run)]


def _lead(run: RunFiles) -> str:
    summary = run.summary
    if not run.pruned:
        return f"A dense network, trained for {counted(summary.get('epochs'))} epochs."
    base, pruned = summary["base"], summary["pruned"]
    text = (
        f"{left_told(base['macs'], pruned['macs'])} of the MACs and {left_told(base['params'], pruned['params'])} of "
        "the parameters are left."
    )
    if run.speed is not None:
        text += f" It is {times_told(run.speed.speedup)} as fast in {run.speed.place}."
    before, after = base[run.metric], pruned[run.metric]
    if is_number(before) and is_number(after):
        text += f" Test {run.metric} went from {shown(before, run.percent)} to {shown(after, run.percent)}."
    within = within_error(summary)
    return f"{text} {within}" if within else text


def _headlines(run: RunFiles) -> Iterator[Headline]:
    now, base = run.result, run.summary["base"] if run.pruned else None
    split = "test" if is_number(now[run.metric]) else "val"
    key = f"{'val_' * (split == 'val')}{run.metric}"
    title = f"{'Test' if split == 'test' else 'Validation'} {run.metric}"
    images = run.summary["data_description"][split]
    about = f"on {images:,} images" + (", ± one standard error" if "±" in metric_told(run, now[key], split) else "")
    if base is None:
        yield Headline(title, metric_told(run, now[key], split), about=about)
    else:
        before, change = metric_told(run, base[key], split), change_told(run, base[key], now[key])
        yield Headline(title, metric_told(run, now[key], split), before, change, about)
    for name, cost in (("MACs", "macs"), ("Parameters", "params")):
        about = "multiply-accumulates" if cost == "macs" else ""
        if base is None:
            yield Headline(name, count(now[cost]), about=about)
        else:
            yield Headline(name, count(now[cost]), count(base[cost]), share_told(base[cost], now[cost]), about)
    if (speed := run.speed) is not None:
        small, dense = (f"{ms_told(ms)} ms" for ms in (speed.small_ms, speed.dense_ms))
        yield Headline("Time a pass", small, dense, times_told(speed.speedup, *speed.interval), speed.place)


def _warned(run: RunFiles) -> Section | None:
    lines = [f"{line}." for line in run.summary.get("warnings", ())]
    return Section("Warnings", [Warnings(lines)]) if lines else None


def _steps(run: RunFiles) -> Section:
    """The metric and the size at each point on the way."""
    summary, val = run.summary, f"val_{run.metric}"
    base, pruned, cuts = summary["base"], summary["pruned"], summary.get("steps", [])

    def row(name: str, at: Record, test: str) -> list[str]:
        sizes = [left_told(base[k], at[k]) for k in ("macs", "params")]
        return [name, *sizes, metric_told(run, at.get(val), "val"), test]

    after = {**pruned, **summary["after_cut"]}
    rows = [row("dense", base, metric_told(run, base[run.metric]))]
    rows += [row(f"after cut {i} of {len(cuts)}", at, "") for i, at in enumerate(cuts[:-1], 1)]
    rows.append(row("after the cut" if len(cuts) < 2 else "after the last cut", after, ""))
    rows.append(row("after fine-tuning", pruned, metric_told(run, pruned[run.metric])))
    names = ("network", "MACs left", "parameters left", f"validation {run.metric}", f"test {run.metric}")
    blocks: list[Block] = [Table(f"From dense to small: {run.metric} on the way", names, rows)]
    if summary["note"]:
        blocks.append(Text(f"Note: {summary['note']}."))
    others = _other_figures(run)
    if others:
        blocks.append(Table("Other figures on the test data", ("figure", "before", "after"), others, folded=True))
    blocks.append(Text(
        "Test data were read once, at the end, for the dense and the small network. Everything that was decided was "
        "decided on training and validation data."
    ))  # fmt: skip
    return Section(f"{run.metric.capitalize()}, before and after", blocks)


def _other_figures(run: RunFiles) -> list[list[str]]:
    before, after = (run.summary[part].get("test", {}) for part in ("base", "pruned"))
    return [[name, _number(before.get(name)), _number(after.get(name))] for name in after]


def _number(value: Any) -> str:
    return f"{value:.4g}" if is_number(value) else plain(value)


def _proof(run: RunFiles) -> Section:
    """What was compared with what, and how near it came."""
    check = run.summary["check"]
    error, tolerance = check["max_error"], check.get("tolerance")
    limit = "" if tolerance is None else f" (allowed: {tolerance:.0e})"
    blocks: list[Block] = [Text(
        "The cut network was compared with the dense one in which nothing reads the removed channels, on real inputs: "
        f"the outputs differ by {error:.1e} of the largest output at most{limit}. Its wiring was proven channel by "
        "channel without data."
    )]  # fmt: skip
    if "ista" in run.summary:
        moved = run.summary["ista"]["fold"]["error"]
        blocks.append(
            Text(f"Folding constant channels into their readers before the cut moved the outputs by {moved:.1e}.")
        )
    approximate, stale = check.get("approximate", []), check.get("stale", [])
    where = [[name or "the model itself"] for name in approximate]
    if where:
        title = "Modules that compute with the number of channels: there the cut changes what is computed"
        blocks.append(Table(title, ("module",), where))
    else:
        blocks.append(Text("No module computes with the number of channels, so nothing but the channels is missing."))
    if stale:
        title = "Plain numbers that may still hold an old width; the outputs were checked with them as they are"
        blocks.append(Table(title, ("attribute",), [[name] for name in stale]))
    return Section("Proof", blocks)


def _export(run: RunFiles) -> Section | None:
    if not run.exports:
        return None
    facts = [Facts(name.removesuffix(".export.json"), list(flat(record))) for name, record in run.exports.items()]
    return Section("Exported files", facts)


def _data(run: RunFiles) -> Section:
    """What the data are, and what was seen of them."""
    found = run.summary["data_description"]
    titles = {
        "data": "data", "train": "training samples", "val": "validation samples", "test": "test samples",
        "classes": "classes", "input_shape": "input shape", "mean": "mean, subtracted",
        "std": "standard deviation, divided by", "split_seed": "seed of the split", "content": "checksum of content",
    }  # fmt: skip
    known = [(title, counted(found[name])) for name, title in titles.items() if found.get(name) is not None]
    more = [(name.replace("_", " "), text) for name, text in flat({k: v for k, v in found.items() if k not in titles})]
    blocks: list[Block] = [Facts("Data set", [*known, *more])]
    seen = run.summary.get("images_trained")
    if isinstance(seen, dict):
        names = {"train": "training", "sparse": "sparse training", "finetune": "fine-tuning"}
        pairs = [(names.get(k, str(k)), counted(v)) for k, v in seen.items()]
        blocks.append(Facts("Samples that went through training steps", pairs))
    return Section("Data", blocks)


def _made(run: RunFiles) -> Section:
    """Everything that decided the result, and where it was computed."""
    summary = run.summary
    machine = [(k, plain(v)) for k, v in summary.get("machine", {}).items()]
    resolved = {k: v for k, v in run.config["resolved"].items() if k != "data"}
    blocks: list[Block] = [Facts("Machine and versions", [("sentei", plain(run.config["sentei"])), *machine])]
    seconds = {k: v for k, v in summary.get("seconds", {}).items() if is_number(v)}
    if seconds:
        total = seconds.pop("total", sum(seconds.values()))
        rows = [[name, seconds_told(v), left_told(total, v)] for name, v in seconds.items()]
        blocks.append(Table("Time by phase", ("phase", "time", "of all"), [*rows, ["all", seconds_told(total), ""]]))
    blocks.append(Facts("Settings, in full", list(flat(resolved)), folded=True))
    return Section("How it was made", blocks)
