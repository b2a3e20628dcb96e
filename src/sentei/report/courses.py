"""What happened on the way: training epoch by epoch, a search, the rounds of ISTA, the stages of a supernet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from sentei.report.blocks import Block, Facts, Figure, Section, Table, Text
from sentei.report.charts import Chart, Series
from sentei.report.figures import counted, plain, seconds_told
from sentei.report.reading import Record, RunFiles, is_number
from sentei.tasks.task import shown

NAMES = {
    "train": "Training",
    "finetune": "Fine-tuning",
    "full": "The full network, before the supernet",
}
SUPERNETS = ("stagewise", "sandwich", "random-path")
"""Names of trainings whose loss imitates the full network, and so is not that of validation."""
GREY = 6
LEFT_OUT = ("event", "name", "epoch", "val_majority")


def unit(run: RunFiles) -> str:
    """The metric's unit on an axis."""
    return " (%)" if run.percent else ""


def scale(run: RunFiles, values: Sequence[Any]) -> list[float]:
    """Values of the metric as an axis has them; what is missing becomes what no chart draws."""
    return [(100 if run.percent else 1) * v if is_number(v) else math.nan for v in values]


def training(run: RunFiles) -> Section | None:
    """A pair of charts and a table for each training of the run."""
    blocks: list[Block] = []
    for name, records in run.epochs.items():
        title = "The supernet" if name in SUPERNETS else NAMES.get(name, name.replace("step", "Training after cut "))
        if len(records) > 1:
            blocks += _curves(run, name, title, records)
        blocks.append(_epochs(run, title, records))
    return Section("Training curves", blocks) if blocks else None


def _curves(run: RunFiles, name: str, title: str, records: list[Record]) -> Iterator[Block]:
    epochs = [r["epoch"] for r in records]
    key = "val_loss" if run.metric == "loss" else run.metric
    same = key != "val_loss" and name not in SUPERNETS
    losses = [("training", "loss"), *([("validation", "val_loss")] if same else [])]
    series = tuple(
        Series(split, epochs, column(records, field), look, dashed=look > 0)
        for look, (split, field) in enumerate(losses)
        if any(is_number(r.get(field)) for r in records)
    )
    yield from figure(Chart(
        f"{title}: loss", f"Loss over {len(records)} epochs, {span(column(records, 'loss'))} on training images.",
        "epoch", "loss", series, whole=True,
    ))  # fmt: skip
    values = scale(run, [r.get(key) for r in records])
    yield from figure(Chart(
        f"{title}: validation {run.metric}",
        f"Validation {run.metric} over {len(records)} epochs, {span(values)}.",
        "epoch", f"validation {run.metric}{unit(run)}", (Series("validation", epochs, values),), whole=True,
    ))  # fmt: skip


def _epochs(run: RunFiles, title: str, records: list[Record]) -> Table:
    key = "val_loss" if run.metric == "loss" else run.metric
    names = [k for k in dict.fromkeys(k for r in records for k in r) if k not in LEFT_OUT]
    titles = {
        "loss": "training loss", "lr": "learning rate", key: f"validation {run.metric}",
        "images_per_second": "images/s", "seconds": "seconds",
    }  # fmt: skip
    rows = [[str(r["epoch"]), *(_cell(run, k, r.get(k), key) for k in names)] for r in records]
    columns = ["epoch", *(titles.get(k, k.replace("val_", "validation ").replace("_", " ")) for k in names)]
    return Table(f"{title}: every epoch", columns, rows, folded=True)


def _cell(run: RunFiles, name: str, value: Any, key: str) -> str:
    if name == key:
        return shown(value, run.percent) if is_number(value) else "-"
    if name == "images_per_second" and is_number(value):
        return f"{value:,.0f}"
    return f"{value:.4g}" if is_number(value) else plain(value)


def search(run: RunFiles, found: Record) -> Section | None:
    """The best structure over the evaluations, and each structure where the journal has them."""
    curve = [p for p in found.get("curve", ()) if len(p) == 2 and is_number(p[1])]
    if not curve:
        return None
    sign = -1 if run.summary["metric"]["lower_is_better"] else 1
    every = [sign * f for f in run.fitnesses]
    best = scale(run, [sign * f for _, f in curve])
    series = [Series("best so far", [n for n, _ in curve], best, 0, "steps")]
    if len(every) == found.get("evaluations") == found.get("measurements"):
        series.insert(0, Series("each structure", range(1, len(every) + 1), scale(run, every), GREY, "dots"))
    chart = Chart(
        "Search: the best structure so far",
        f"Validation {run.metric} of the best structure over {curve[-1][0]} evaluations, {span(best)}.",
        "structures evaluated", f"validation {run.metric}{unit(run)}", tuple(series), whole=True,
    )  # fmt: skip
    told = {
        "structures": "structures in the space", "genes": "widths searched", "evaluations": "structures evaluated",
        "measurements": "measurements", "failed": "failed", "exhausted": "every structure tried",
        "executor": "where", "workers": "workers", "strategy": "strategy",
    }  # fmt: skip
    pairs = [(text, counted(found[name])) for name, text in told.items() if name in found]
    if is_number(found.get("seconds")):
        pairs.append(("work", seconds_told(found["seconds"])))
    return Section("Search", [*figure(chart), Facts("What the search did", pairs)])


def ista(run: RunFiles, report: Record) -> Section | None:
    """Each round of sparse training: what became zero, what was left, and at what price."""
    rounds = [r for r in report.get("curve", ()) if isinstance(r, dict)]
    if not rounds:
        return None
    numbers, full = list(range(1, len(rounds) + 1)), run.summary["base"]["macs"]
    left = [100 * v / full if full else math.nan for v in column(rounds, "macs")]
    zero = [100 * v for v in column(rounds, "sparsity")]
    values = scale(run, [r.get(f"val_{run.metric}") for r in rounds])
    blocks: list[Block] = [
        *figure(Chart(
            "ISTA: what is left",
            f"Over {len(rounds)} rounds MACs left go {span(left)} %, scales at zero {span(zero)} %.",
            "round", "share (%)", (Series("MACs left", numbers, left), Series("scales at zero", numbers, zero, 1)),
            zero=True, whole=True,
        )),
        *figure(Chart(
            f"ISTA: validation {run.metric}", f"Validation {run.metric} after each round, {span(values)}.",
            "round", f"validation {run.metric}{unit(run)}", (Series("validation", numbers, values),), whole=True,
        )),
    ]  # fmt: skip
    rows = [
        [str(n), *(f"{r[k]:.4g}" if is_number(r.get(k)) else "-" for k in ("rho", "loss", "lasso")),
         f"{z:.1f}%", f"{m:.1f}%", shown(r.get(f"val_{run.metric}"), run.percent)]
        for n, r, z, m in zip(numbers, rounds, zero, left, strict=True)
    ]  # fmt: skip
    names = ["round", "rho", "loss", "Lasso term", "scales at zero", "MACs left", f"validation {run.metric}"]
    blocks.append(Table("ISTA: every round", names, rows, folded=True))
    blocks.append(Facts("Sparse training", _ista_facts(report)))
    if report.get("diagnosis"):
        blocks.append(Text(f"What the run itself says: {report['diagnosis']}"))
    return Section("Sparse training", blocks)


def _ista_facts(report: Record) -> list[tuple[str, str]]:
    pairs = [("alpha", plain(report.get("alpha"))), ("rho at the end", plain(report.get("rho")))]
    pairs.append(("units cut to close the gap to the budget", plain(report.get("closed"))))
    for name, title in (("left_whole", "left whole"), ("not_rescaled", "not rescaled")):
        held = report.get(name) or {}
        pairs += [(f"{title}: {group}", plain(why)) for group, why in held.items()]
    return pairs


def stagewise(run: RunFiles, report: Record) -> list[Section]:
    """The stages, and the structures that their tables led to."""
    found = report.get("search", {})
    stages, rows = report.get("stages", ()), found.get("rows", ())
    table = [[str(i), str(name), counted(rows[i - 1]) if i <= len(rows) else "-"] for i, name in enumerate(stages, 1)]
    names = ("stage", "ends at", "versions measured")
    blocks: list[Block] = [Table("Stages, by the module that ends each", names, table, left=2)]
    picked = [c for c in found.get("candidates", ()) if isinstance(c, dict)]
    if picked:
        blocks += _candidates(run, picked, found.get("picked"))
    sections = [Section("Stages", blocks)]
    searched = search(run, found)
    return [*sections, *([searched] if searched else [])]


def _candidates(run: RunFiles, tried: list[Record], picked: Any) -> Iterator[Block]:
    metric = f"val_{run.metric}"
    distances, values = column(tried, "distance"), scale(run, [t.get(metric) for t in tried])
    rest = [i for i in range(len(tried)) if i != picked]
    series = [Series("measured", [distances[i] for i in rest], [values[i] for i in rest], 0, "marks")]
    if picked in range(len(tried)):
        series.append(Series("picked", [distances[picked]], [values[picked]], 1, "marks"))
    yield from figure(Chart(
        "Structures measured as a whole",
        f"Validation {run.metric} over the total stage distance of {len(tried)} structures, {span(values)}.",
        "total distance of the stages", f"validation {run.metric}{unit(run)}", tuple(series),
    ))  # fmt: skip
    costs = [k for k in tried[0] if k not in ("distance", metric) and not k.startswith("val_")]
    rows = [
        [f"{i}{' (picked)' if i - 1 == picked else ''}", f"{d:.4g}", *(counted(t.get(k)) for k in costs),
         shown(t.get(metric), run.percent)]
        for i, (t, d) in enumerate(zip(tried, distances, strict=True), 1)
    ]  # fmt: skip
    names = ["structure", "distance", *("MACs" if k == "macs" else k for k in costs), f"validation {run.metric}"]
    yield Table("Structures measured as a whole: all", names, rows, folded=True)


def figure(chart: Chart) -> Iterator[Figure]:
    """A chart where there is something to draw."""
    if not chart.empty:
        yield Figure(chart)


def column(records: Sequence[Record], name: str) -> list[float]:
    return [float(r[name]) if is_number(r.get(name)) else math.nan for r in records]


def span(values: Sequence[float]) -> str:
    """Where a curve begins and ends, in words."""
    known = [v for v in values if is_number(v)]
    return f"from {known[0]:.4g} to {known[-1]:.4g}" if known else "not measured"
