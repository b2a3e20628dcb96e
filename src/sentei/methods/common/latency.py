"""Budgets in milliseconds: a table before the plan, and the cut network measured after it, until it keeps the limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from sentei.errors import BudgetError
from sentei.graph import ChannelGraph
from sentei.methods.common.method import Found
from sentei.methods.common.pruning import Pruning
from sentei.plan import Budget, Constraints
from sentei.speed.latency import LatencyTable, whole_pass
from sentei.speed.timing import Timer, clock_for, measure
from sentei.threads import with_threads

TRIES = 3
"""Cuts after the first one."""
NEAR = 0.02
"""How far from its limit a measured time may be."""
SECONDS = 20
"""Of measuring a cut network, at most."""


def set_up(pruning: Pruning) -> None:
    """Give the graph measured times, and let widths fall in the steps of the runtime.

    The table is the one that is given, or is measured now and stored.
    """
    timing, graph = pruning.timing, pruning.graph
    if timing.table is not None:
        table = timing.read(timing.table, graph)
    else:
        threads = f"{timing.threads} thread{'s' * (timing.threads > 1)}"
        pruning.say(f"Measuring layers and four whole networks in {timing.runtime}, {threads} ...")
        table = LatencyTable.from_plain(pruning.run.once("latency", lambda: _measured(pruning, graph))["table"])
    pruning.say(
        f"The full network takes {table.calibrated[0][0]:.3g} ms ({table.clock} time); widths in steps of {table.step} "
        f"are fast there. The table meets the {len(table.calibrated)} networks that it was calibrated on within "
        f"{table.error:.1%}"
    )
    pruning.table, pruning.graph = table, graph.with_latency(table)
    pruning.constraints = in_steps(pruning.constraints, table)


def _measured(pruning: Pruning, graph: ChannelGraph) -> dict[str, Any]:
    table = LatencyTable.measure(
        graph, pruning.base, runtime=pruning.timing.runtime, threads=pruning.timing.threads, progress=pruning.progress
    )
    return {"table": table.to_plain()}


def in_steps(constraints: Constraints, table: LatencyTable) -> Constraints:
    """Widths in the steps of the runtime where smaller ones were asked for: in between, a narrower one costs the same.

    One by one stays one by one.
    """
    if constraints.round_to in (None, 1):
        return constraints
    return replace(constraints, round_to=max(constraints.round_to, table.step))


def within_time(pruning: Pruning, found: Found) -> Found:
    """The network as its method cut it or, where it is not as fast as the limit, as it cuts it under another one.

    Measured beside the full network; the limit is moved by what was missed, at most three times, and once there are
    networks on both sides of it to the place between the nearest two.
    """
    graph, table = pruning.graph, pruning.table
    assert table is not None
    asked = limit = pruning.budget.resolve(graph)["latency_ms"]
    tries: list[tuple[Found, dict[str, Any]]] = []
    while True:
        number = len(tries) + 1
        record = pruning.run.once(f"timed{number}", lambda found=found: _timed(pruning, found.model))  # type: ignore[misc]
        cost = graph.cost(found.plan)
        record = {**record, "predicted_ms": cost.latency_ms, "asked_ms": asked, "used": _used(pruning.budget, record)}
        tries.append((found, record))
        pruning.say(
            f"Measured {record['small_ms']:.3g} ms, {record['share']:.1%} of the full network's "
            f"{record['dense_ms']:.3g} ms, {record['used']:.1%} of the budget (predicted {cost.latency_ms:.3g} ms)"
        )
        if abs(record["used"] - 1) <= NEAR or number > TRIES or found.again is None:
            break
        asked = _nearer(asked, [record for _, record in tries])
        try:
            other = found.again(pruning.budget.in_milliseconds(asked), f"again{number}")
        except BudgetError as error:
            pruning.say(f"  Nearer to it is out of reach: {error}")
            break
        if any(graph.cost(other.plan) == graph.cost(known.plan) for known, _ in tries):
            break
        found = other
    best, record = max(tries, key=_preferred)
    if record["used"] > 1 + NEAR:
        pruning.say(f"  The budget is missed by {record['used'] - 1:.1%}: this is the nearest that was found")
    told = {
        "runtime": table.runtime, "threads": table.threads, "clock": table.clock, "step": table.step,
        "limit_ms": limit, **{k: record[k] for k in ("dense_ms", "small_ms", "share", "predicted_ms")},
        "error": table.error, "tries": [_plain(r) for _, r in tries], "versions": dict(table.versions),
    }  # fmt: skip
    return replace(best, report={**best.report, "latency": told})


def _nearer(asked: float, records: Sequence[Mapping[str, Any]]) -> float:
    """Milliseconds to ask for next, after what came of those before."""
    low = max((r for r in records if r["used"] <= 1), key=lambda r: r["used"], default=None)
    high = min((r for r in records if r["used"] > 1), key=lambda r: r["used"], default=None)
    if low and high and low["predicted_ms"] < high["predicted_ms"]:
        way = (1 - low["used"]) / (high["used"] - low["used"])
        return float(low["predicted_ms"] + way * (high["predicted_ms"] - low["predicted_ms"]))
    return asked * min(max(1 / records[-1]["used"], 0.7), 1.3)


def _preferred(tried: tuple[Found, dict[str, Any]]) -> tuple[bool, float]:
    """The slowest, hence largest, of those that keep the limit; where none does, the nearest to it."""
    used = tried[1]["used"]
    return (True, tried[1]["predicted_ms"]) if used <= 1 + NEAR else (False, -used)


def _used(budget: Budget, record: Mapping[str, Any]) -> float:
    """How much of the limits a measured network takes."""
    share = 0.0 if budget.latency is None else record["share"] / budget.latency
    return float(max(share, 0.0 if budget.latency_ms is None else record["small_ms"] / budget.latency_ms))


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k != "seconds"}


def _timed(pruning: Pruning, small: nn.Module) -> dict[str, Any]:
    """Milliseconds of both networks, measured in turn."""
    graph, timing = pruning.graph, pruning.timing
    with with_threads(timing.threads):
        passes = {
            name: whole_pass(network, graph, timing.runtime, timing.threads)
            for name, network in (("dense", pruning.base), ("small", small))
        }
        timer = Timer(passes, clock_for(passes["dense"], timing.threads))
        measure(timer, lambda t: [t.speedup("small", "dense")], SECONDS)
    dense, small_ms = (timer.fast(name) * 1e3 for name in ("dense", "small"))
    return {"dense_ms": dense, "small_ms": small_ms, "share": small_ms / dense}
