"""What `sentei compare` found: differences to uniform over the same seeds, and which of them mean something."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from sentei.report.blocks import Block, Section, Table, Text
from sentei.report.figures import plain, signed
from sentei.report.reading import json_of
from sentei.schema import Metric, Open, validated

COMPARE = "compare.json"


class Difference(Open):
    mean: float
    count: int
    low: float | None = None
    high: float | None = None
    p_holm: float | None = None
    told_apart: bool = False


class Result(Open):
    """One method at one budget."""

    method: str
    budget: dict[str, float]
    finished: int
    waiting: int
    failed: list[str] = []
    difference: Difference | None = None
    sentence: str | None = None


class Plan(Open):
    metric: Metric
    total_images: int


class Compared(Open):
    """compare.json, as far as it is shown."""

    format: Literal["sentei compare"]
    version: Literal[1]
    plan: Plan
    results: list[Result]


def differences(folder: Path) -> Section | None:
    """The section of a folder that `sentei compare` filled; None elsewhere, CheckpointError for a damaged file."""
    file = folder / COMPARE
    if not file.is_file():
        return None
    found = validated(Compared, json_of(file), file)
    rows = [[r.method, budget_told(r.budget), *_row(r, found.plan.metric.percent)] for r in found.results]
    metric = found.plan.metric.name
    names = ("method", "budget", "seeds", f"{metric} against uniform", "95% interval", "p, adjusted", "told apart")
    blocks: list[Block] = [
        Text(
            f"Every run put {found.plan.total_images:,} samples through training steps, whatever for. Differences are "
            "paired over seeds; p is adjusted for the number of comparisons (Holm)."
        ),
        Table("Differences to uniform", names, rows, left=2),
        *(Text(r.sentence) for r in found.results if r.sentence),
    ]
    return Section("Compared with uniform", blocks)


def budget_told(budget: dict[str, Any]) -> str:
    return ", ".join(f"{name} {plain(value)}" for name, value in budget.items()) or "-"


def _row(result: Result, percent: bool) -> list[str]:
    left = f" ({result.waiting} to come)" if result.waiting else ""
    failed = f", {len(result.failed)} failed" if result.failed else ""
    found, seeds = result.difference, f"{result.finished}{left}{failed}"
    if found is None:
        return [seeds, "-", "-", "-", "-"]
    interval = "-"
    if found.low is not None and found.high is not None:
        interval = f"{_points(found.low, percent)} to {_points(found.high, percent)}"
    p = "-" if found.p_holm is None else f"{found.p_holm:.3f}"
    unit = " points" if percent else ""
    return [seeds, f"{_points(found.mean, percent)}{unit}", interval, p, plain(found.told_apart)]


def _points(value: float, percent: bool) -> str:
    return signed(f"{100 * value:+.2f}" if percent else f"{value:+.4g}")
