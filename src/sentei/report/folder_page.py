"""The page of a folder of runs: what each method reaches at what cost."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count as count_up
from pathlib import Path
from typing import NamedTuple

from sentei.report.blocks import Block, Facts, Page, Section, Table, Text, Warnings
from sentei.report.charts import APART, Chart, Series
from sentei.report.courses import figure, unit
from sentei.report.differences import budget_told, differences
from sentei.report.figures import counted, left_told, metric_told, ms_told, plain, scaled, seconds_told, times_told
from sentei.report.reading import RunFiles, Speed, is_number
from sentei.report.tables import count
from sentei.tasks.task import shown

CostOf = Callable[[RunFiles], float | None]


@dataclass(frozen=True)
class Point:
    """Runs that differ in nothing but their seeds."""

    method: str
    line: str
    """All settings but budget and seed: points that share them are joined."""
    runs: tuple[RunFiles, ...]

    @property
    def images(self) -> float | None:
        """Samples that went through training steps, on average; None where a run did not count them."""
        totals = [total for run in self.runs if (total := _seen(run)) is not None]
        return statistics.fmean(totals) if len(totals) == len(self.runs) else None

    @property
    def batch(self) -> int:
        """Samples of a training step: totals that are nearer to each other are the same."""
        return int(self.runs[0].summary.get("settings", {}).get("recipe", {}).get("batch_size", 1))


def folder_page(folder: Path, runs: Sequence[RunFiles], left_out: Mapping[str, str]) -> Page:
    """The page of finished runs below a folder; `left_out` tells why others are not on it."""
    pruned, trained = [r for r in runs if r.pruned], [r for r in runs if not r.pruned]
    groups = comparable(pruned)
    sections: list[Section] = []
    if left_out:
        sections.append(Section("Left out", [Warnings([f"{name}: {why}" for name, why in left_out.items()])]))
    for number, group in enumerate(groups, 1):
        which = f", {number} of {len(groups)}" if len(groups) > 1 else ""
        name = f"{group[0].summary['model']} on {group[0].summary['data']}{which}"
        sections.append(Section(name, list(_compared(folder, group))))
    found = differences(folder)
    if found is not None:
        sections.append(found)
    if trained:
        sections.append(Section("Trained networks", [_trained(folder, trained)]))
    sections.append(Section("Each run", [_facts(folder, r) for r in runs]))
    return Page(f"Runs in {folder.resolve().name}", _lead(pruned, groups), [], sections, f"{len(runs)} finished runs")


def _lead(pruned: Sequence[RunFiles], groups: Sequence[Sequence[RunFiles]]) -> str:
    if not pruned:
        return "No network in this folder was pruned."
    methods = ", ".join(dict.fromkeys(r.summary["method"] for r in pruned))
    text = f"{len(pruned)} pruned network{'s' * (len(pruned) > 1)}, by {methods}."
    if len(groups) > 1:
        text += (
            f" They come from {len(groups)} different dense networks, data sets or metrics. Only what comes from the "
            "same is compared, so each has a section of its own."
        )
    return text


def comparable(runs: Sequence[RunFiles]) -> list[list[RunFiles]]:
    """Runs of the same dense network, data, task and metric together, the largest company first."""
    groups: dict[str, list[RunFiles]] = {}
    for run in runs:
        base = run.config["resolved"].get("base_sha256")
        key = [run.summary["task"], run.metric, run.summary["data_description"]["content"], base]
        groups.setdefault(json.dumps(key), []).append(run)
    return sorted(groups.values(), key=lambda group: -len(group))


def points_of(runs: Sequence[RunFiles]) -> list[Point]:
    """Runs that differ only in their seeds as one point, by method and from large to small."""
    found: dict[tuple[str, str, str], list[RunFiles]] = {}
    for run in runs:
        settings = json.loads(json.dumps(run.summary.get("settings", {})))
        settings.get("recipe", {}).pop("seed", None)
        budget = json.dumps(settings.pop("budget", None), sort_keys=True)
        found.setdefault((run.summary["method"], json.dumps(settings, sort_keys=True), budget), []).append(run)
    points = [Point(method, line, tuple(members)) for (method, line, _), members in found.items()]
    return sorted(points, key=lambda p: (p.method, p.line, -statistics.fmean(r.result["macs"] for r in p.runs)))


def _compared(folder: Path, runs: Sequence[RunFiles]) -> Iterator[Block]:
    first, points = runs[0], points_of(runs)
    base, seeds = first.summary["base"], any(len(p.runs) > 1 for p in points)
    bars = (
        " Runs that differ only in their seed are one mark at their mean; its bar reaches one standard deviation over "
        "the seeds to either side."
    )
    yield Text(
        f"The dense network has {count(base['macs'])} MACs, {count(base['params'])} parameters and a test "
        f"{first.metric} of {metric_told(first, base[first.metric])}.{bars if seeds else ''}"
    )
    size, prefix = scaled([float(base["macs"])])
    axis, full = f"MACs ({prefix or '1'})", base["macs"] / size
    yield from _tradeoff(points, lambda r: r.result["macs"] / size, "MACs", axis, full)
    for place, entries in timed_alike(runs).items():
        yield from _in_time(points, place, entries)
    if seeds:
        yield _means(points)
    yield _every(folder, runs)


# -- trade-off curves


def _tradeoff(points: Sequence[Point], cost: CostOf, name: str, axis: str, full: float) -> Iterator[Block]:
    """The metric over a cost: a mark for each point, a line for each method and total of trained images, the dense
    network as a mark of its own."""
    first = points[0].runs[0]
    split = "test" if is_number(first.result[first.metric]) else "validation"
    key, factor = f"{'val_' * (split != 'test')}{first.metric}", 100 if first.percent else 1
    names = curve_names(points)
    looks = dict(zip(dict.fromkeys(names), (i for i in count_up() if i != APART), strict=False))
    lines: dict[tuple[str, str], list[_Mark]] = {}
    for point, curve in zip(points, names, strict=True):
        pairs = [
            (c, factor * r.result[key]) for r in point.runs if (c := cost(r)) is not None and is_number(r.result[key])
        ]
        if pairs:
            lines.setdefault((curve, point.line), []).append(_Mark.of(curve, pairs))
    series = [_series(curve, sorted(marks), looks[curve]) for (curve, _), marks in lines.items()]
    dense = first.summary["base"].get(key)
    if series and is_number(dense):
        series.append(_series("dense", [_Mark.of("dense", [(full, factor * dense)])], APART))
    yield from figure(Chart(
        f"{split.capitalize()} {first.metric} against {name}",
        f"{split.capitalize()} {first.metric} of {len(points)} settings of {len({p.method for p in points})} methods "
        f"over {name}. A curve is one method at one total of images that it was trained on.",
        axis, f"{split} {first.metric}{unit(first)}", tuple(series),
    ))  # fmt: skip


def curve_names(points: Sequence[Point]) -> list[str]:
    """To which curve each point belongs: one method at one total of trained images, give or take a batch."""
    totals: dict[float, float] = {}
    largest = math.inf
    for images, batch in sorted(((p.images, p.batch) for p in points if p.images is not None), reverse=True):
        largest = images if largest - images >= batch else largest
        totals[images] = largest
    return [p.method if p.images is None else f"{p.method}, {count(totals[p.images])} images" for p in points]


class _Mark(NamedTuple):
    x: float
    y: float
    spread: float
    told: str

    @classmethod
    def of(cls, name: str, pairs: Sequence[tuple[float, float]]) -> _Mark:
        """The mean of (cost, metric) of some runs."""
        x, y = statistics.fmean(c for c, _ in pairs), statistics.fmean(v for _, v in pairs)
        spread = statistics.stdev(v for _, v in pairs) if len(pairs) > 1 else 0.0
        over = f" ± {spread:.2g} over {len(pairs)} runs" if len(pairs) > 1 else ""
        return cls(x, y, spread, f"{name}: {y:.4g}{over} at {x:.4g}")


def _series(name: str, marks: Sequence[_Mark], look: int) -> Series:
    return Series(
        name, [m.x for m in marks], [m.y for m in marks], look, "line" if len(marks) > 1 else "marks",
        spread=[m.spread for m in marks], told=[m.told for m in marks],
    )  # fmt: skip


def timed_alike(runs: Sequence[RunFiles]) -> dict[str, dict[int, Speed]]:
    """By where it was taken, the latest measurement of each run, by `id`; where two runs or more were measured."""
    found: dict[str, dict[int, Speed]] = {}
    for run in runs:
        for speed in run.speeds:
            found.setdefault(f"{speed.place}{f', {speed.cpu}' if speed.cpu else ''}", {})[id(run)] = speed
    return {place: entries for place, entries in found.items() if len(entries) > 1}


def _in_time(points: Sequence[Point], place: str, speeds: Mapping[int, Speed]) -> Iterator[Block]:
    def ms(run: RunFiles) -> float | None:
        speed = speeds.get(id(run))
        return speed.small_ms if speed else None

    dense = statistics.median(speed.dense_ms for speed in speeds.values())
    yield from _tradeoff(points, ms, f"milliseconds, {place}", "time a pass (ms)", dense)


# -- tables


def _means(points: Sequence[Point]) -> Table:
    first = points[0].runs[0]
    rows = []
    for point in points:
        values = [v for r in point.runs if is_number(v := r.result[first.metric])]
        base = point.runs[0].summary["base"]
        left = statistics.fmean(r.result["macs"] for r in point.runs)
        rows.append([
            point.method, str(len(point.runs)), left_told(base["macs"], left), *_mean_and_spread(values, first.percent),
        ])  # fmt: skip
    names = ("method", "seeds", "MACs left", f"mean test {first.metric}", "standard deviation")
    return Table("Means over seeds", names, rows, beside=True)


def _mean_and_spread(values: Sequence[float], percent: bool) -> list[str]:
    if not values:
        return ["-", "-"]
    spread = statistics.stdev(values) if len(values) > 1 else None
    points = spread is not None and percent
    told = "-" if spread is None else f"{100 * spread:.2f} points" if points else f"{spread:.3g}"
    return [shown(statistics.fmean(values), percent), told]


def _every(folder: Path, runs: Sequence[RunFiles]) -> Table:
    first = runs[0]
    timed, seen = any(r.speed for r in runs), any(_seen(r) for r in runs)
    names = [
        "run", "method", "seed", f"test {first.metric}", f"validation {first.metric}", "MACs", "left", "parameters",
        *(["ms", "times as fast"] * timed), *(["samples trained"] * seen), "time to make",
    ]  # fmt: skip
    rows = []
    for run in sorted(runs, key=lambda r: (r.summary["method"], -r.result["macs"], str(r.folder))):
        result, base = run.result, run.summary["base"]
        rows.append([
            name_in(folder, run), run.summary["method"], plain(run.summary.get("seed")),
            metric_told(run, result[run.metric]), metric_told(run, result[f"val_{run.metric}"], "val"),
            count(result["macs"]), left_told(base["macs"], result["macs"]), count(result["params"]),
            *(_times(run) if timed else []), *([counted(_seen(run))] * seen), _spent(run),
        ])  # fmt: skip
    return Table("All runs, by method and size", names, rows, left=2)


def _trained(folder: Path, runs: Sequence[RunFiles]) -> Table:
    rows = [
        [name_in(folder, r), f"{r.summary['model']} on {r.summary['data']}", r.metric,
         metric_told(r, r.result[r.metric]), count(r.result["macs"]), count(r.result["params"]), _spent(r)]
        for r in runs
    ]  # fmt: skip
    names = ("run", "network", "metric", "test", "MACs", "parameters", "time to make")
    return Table("Networks that were trained, not pruned", names, rows, left=3)


def _facts(folder: Path, run: RunFiles) -> Facts:
    """What one run says of itself, for those who do not have its folder at hand."""
    summary = run.summary
    pairs = [("network", f"{summary['model']} on {summary['data']}"), ("seed", plain(summary.get("seed")))]
    if run.pruned:
        base, check, val = summary["base"], summary["check"], f"val_{run.metric}"
        pairs += [
            ("method", summary["method"]), ("budget", budget_told(summary.get("budget") or {})),
            (f"test {run.metric} before", metric_told(run, base[run.metric])),
            (f"test {run.metric}", metric_told(run, run.result[run.metric])),
            (f"validation {run.metric} after the cut", metric_told(run, summary["after_cut"][val], "val")),
            ("MACs left", left_told(base["macs"], run.result["macs"])),
            ("parameters left", left_told(base["params"], run.result["params"])),
            ("largest error of the cut", f"{check['max_error']:.1e}"),
        ]  # fmt: skip
    else:
        pairs.append((f"test {run.metric}", metric_told(run, run.result[run.metric])))
    pairs += [("epochs", plain(summary.get("epochs"))), ("time to make", _spent(run))]
    pairs += [("warning", f"{w}.") for w in summary.get("warnings", ())]
    return Facts(name_in(folder, run), pairs, folded=True)


def name_in(folder: Path, run: RunFiles) -> str:
    """The folder of a run as seen from the folder of the page."""
    return run.folder.relative_to(folder).as_posix()


def _times(run: RunFiles) -> list[str]:
    return [ms_told(run.speed.small_ms), times_told(run.speed.speedup)] if run.speed else ["-", "-"]


def _seen(run: RunFiles) -> int | None:
    found = run.summary.get("images_trained")
    total = found.get("total") if isinstance(found, dict) else None
    return total if isinstance(total, int) else None


def _spent(run: RunFiles) -> str:
    total = run.summary.get("seconds", {}).get("total", run.summary.get("seconds", {}).get("train"))
    return seconds_told(total) if is_number(total) else "-"
