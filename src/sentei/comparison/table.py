"""The latency table of a comparison: measured once, so that all runs are cut by the same one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from sentei.comparison.file import LATENCY
from sentei.comparison.planned import Ground
from sentei.methods.common.latency import in_steps
from sentei.methods.common.pruning import Say
from sentei.plan import Budget, uniform
from sentei.speed.latency import LatencyTable, Timing


def measured(ground: Ground, budgets: Iterable[Budget], folder: Path, say: Say, progress: bool) -> Ground:
    """With a table where a budget limits milliseconds: the one that is given, or that of the folder, made if need be.

    BudgetError for a budget that uniform pruning cannot meet by the table, ConfigError for a table of another runtime
    or of another network.
    """
    timed = [budget for budget in budgets if budget.timed]
    if not timed:
        return ground
    timing, pruning = ground.given["timing"], ground.reference()
    graph, path = pruning.trace(), Path(timing.table or folder / LATENCY)
    if timing.table is None and not path.exists():
        say(f"Measuring layers and four whole networks in {timing.runtime}, once for all runs ...")
        made = LatencyTable.measure(
            graph, ground.model, runtime=timing.runtime, threads=timing.threads, progress=progress
        )
        made.save(path)
    table = timing.read(path, graph, ". Ask for the same, or choose another folder")
    for budget in timed:
        uniform(graph.with_latency(table), budget, constraints=in_steps(pruning.constraints, table))
    known = Timing(timing.runtime, timing.threads, str(path.resolve()))
    return replace(ground, given={**ground.given, "timing": known})
