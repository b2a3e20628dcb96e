"""What a comparison has found: means over seeds, differences to uniform, and which of them mean something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sentei.comparison.statistics import LEVEL, Difference, Spread, answers_of, holm, paired

REFERENCE = "uniform"
"""The method that all others are held against."""


def results_of(plan: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A record for each budget and method, from the plan and the runs of a `compare.json` (see `compare_file`).

    Each has the mean, standard deviation and number of seeds of the test metric and of what it cost, and for every
    method but `uniform` the difference to it.
    """
    found = [_group(plan, runs, budget, method) for budget in plan["budgets"] for method in plan["methods"]]
    compared = [group for group in found if group["method"] != REFERENCE]
    gaps = [_gap(plan, runs, group) for group in compared]
    known = [i for i, gap in enumerate(gaps) if gap is not None and gap.p is not None]
    adjusted = dict(zip(known, holm([gaps[i].p or 0.0 for i in known]), strict=True))  # type: ignore[union-attr]
    for i, (group, gap) in enumerate(zip(compared, gaps, strict=True)):
        group["difference"] = None if gap is None else {
            **asdict(gap), "p_holm": adjusted.get(i), "told_apart": i in adjusted and adjusted[i] < 1 - LEVEL,
        }  # fmt: skip
        group["sentence"] = sentence(plan, group, len(known))
    return found


def figure_of(runs: Sequence[Mapping[str, Any]]) -> str:
    """The split that methods are judged on: "test", or "val" where there are no test images."""
    found = [run["result"] for run in runs if run["result"]]
    return "test" if not found or any(result["test"] is not None for result in found) else "val"


def _group(
    plan: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], budget: Mapping[str, float], method: str
) -> dict[str, Any]:
    mine = [run for run in runs if run["method"] == method and run["budget"] == budget]
    done = [run["result"] for run in mine if run["result"]]
    spreads = {name: _spread([result[name] for result in done]) for name in ("test", "val", "seconds")}
    costs = ("macs", "macs_share", "params", "params_share", "ms", "ms_share")
    phases = done[0]["images"] if done else {}
    return {
        "method": method,
        "budget": budget,
        "finished": len(done),
        "waiting": sum(run["state"] == "waiting" for run in mine),
        "failed": list(dict.fromkeys(run["error"] for run in mine if run["state"] == "failed")),
        **spreads,
        **{name: _mean([result.get(name) for result in done]) for name in costs},
        "images": {phase: sum(result["images"][phase] for result in done) / len(done) for phase in phases},
        "difference": None,
        "sentence": None,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """None where one of them is not known: the mean of the others would be another thing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _spread(values: Sequence[float | None]) -> dict[str, Any] | None:
    found = Spread.of([value for value in values if value is not None])
    return None if found is None else asdict(found)


def _gap(
    plan: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], group: Mapping[str, Any]
) -> Difference | None:
    """The differences to uniform at the same budget, paired by seed; None if no seed has finished with both."""
    figure = figure_of(runs)
    by_seed: dict[str, dict[int, Mapping[str, Any]]] = {group["method"]: {}, REFERENCE: {}}
    for run in runs:
        result = run["result"]
        if run["budget"] == group["budget"] and run["method"] in by_seed and result and result[figure] is not None:
            by_seed[run["method"]][run["seed"]] = result
    mine, theirs = by_seed[group["method"]], by_seed[REFERENCE]
    pairs = [(mine[seed], theirs[seed]) for seed in mine if seed in theirs]
    if not pairs:
        return None
    first, second = zip(*pairs, strict=True)
    answers = answers_of(first, second) if figure == "test" else None
    values = [[float(result[figure]) for result in side] for side in (first, second)]
    return paired(values[0], values[1], plan["counted"][figure], answers)


# -- in words


def sentence(plan: Mapping[str, Any], group: Mapping[str, Any], compared: int) -> str:
    """Whether a method is better or worse than uniform at a budget, or not told apart from it."""
    gap, metric = group["difference"], plan["metric"]
    what = f"{group['method']} at {title(group['budget'])}"
    if gap is None:
        why = group["failed"][0] if group["failed"] else "no seed has finished with both methods"
        return f"{what}: nothing to compare with uniform: {why}"
    size = f"{told(gap['mean'], metric)}, "
    if gap["low"] is None:
        open_ = "" if gap["test_error"] is None else f"; the test images alone leave ± {_reach(gap, metric)} open"
        return f"{what} is not told apart from uniform: {size}1 seed, which says nothing about the next{open_}"
    seeds = f"interval {told(gap['low'], metric, False)} .. {told(gap['high'], metric, False)}, {gap['count']} seeds"
    if gap["told_apart"]:
        better = (gap["mean"] > 0) != metric["lower_is_better"]
        return f"{what} is {'better' if better else 'worse'} than uniform: {size}{seeds}"
    outside = gap["low"] > 0 or gap["high"] < 0
    by_chance = (
        f"; among {compared} comparisons one like this comes about by chance (p {gap['p']:.2g}, Holm "
        f"{gap['p_holm']:.2g})" if outside else ""
    )  # fmt: skip
    return f"{what} is not told apart from uniform: {size}{seeds}{by_chance}"


def told(value: float, metric: Mapping[str, Any], unit: bool = True) -> str:
    """A difference of the metric with its sign.

    >>> told(0.0021, {"percent": True}), told(-0.3, {"percent": False})
    ('+0.21 points', '-0.3')
    """
    if metric["percent"]:
        return f"{100 * value:+.2f}{' points' * unit}"
    return f"{value:+.4g}"


def _reach(gap: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    """Half of the interval that the test images alone would give."""
    return told(1.96 * gap["test_error"], metric).removeprefix("+")


def title(budget: Mapping[str, float]) -> str:
    """A budget in words.

    >>> title({"macs": 0.5}), title({"macs": 20_000_000, "params": 0.3})
    ('50% of the MACs', '20,000,000 MACs and 30% of the parameters')
    """
    return " and ".join(_limit(NAMES.get(name, name), value) for name, value in budget.items())


def _limit(name: str, value: float) -> str:
    if value <= 1:
        return f"{100 * value:.4g}% of the {name}"
    return f"{value:,.0f} {name}" if value >= 1000 else f"{value:.4g} {name}"


NAMES = {
    "macs": "MACs", "params": "parameters", "activation_bytes": "bytes of activations", "latency": "milliseconds",
    "latency_ms": "ms", "memory": "bytes of live activations",
}  # fmt: skip
