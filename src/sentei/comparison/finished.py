"""Finished runs side by side: a row each, and what keeps their figures from being comparable."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sentei.answers import error_to_dense
from sentei.comparison.statistics import binomial_error
from sentei.errors import CheckpointError, ConfigError
from sentei.runfiles import BENCH, read_config, read_summary
from sentei.speed.benchfile import measured_for_budget, read_bench

CONDITIONS = ("runtime", "threads", "batch", "device", "machine", "by")
"""What has to agree for two latencies to be compared."""


@dataclass(frozen=True)
class Row:
    """One network: a pruned one, or the dense one of a training or before a cut."""

    name: str
    role: str
    """pruned or dense."""
    method: str | None
    metric: Mapping[str, Any]
    test: float | None
    test_error: float | None
    """One standard error of `test`: binomial for the accuracy of a classification, None where it is not known."""
    val: float | None
    macs: int
    macs_share: float | None
    """Of the dense network's."""
    params: int
    params_share: float | None
    seconds: float | None
    images: Mapping[str, int] | None
    """Samples that went through training steps, by phase, and "total"; None where the run did not count them."""
    data: Mapping[str, Any]
    """train, val, test: counts; content: a checksum."""
    dense: str | None
    """Checksum of the dense network's weights, where the run has noted it."""
    latency: Mapping[str, Any] | None = None
    """ms, ms_low, ms_high, and the conditions; None where it was not measured. `by` is "prune" for what was measured
    because a budget limits it, None for `sentei bench`."""
    taught: bool | None = None
    """Whether the dense network was the teacher of a pruned one; None where the run has not noted it."""
    to_dense: float | None = None
    """`test` of a pruned network less that of the dense one."""
    to_dense_error: float | None = None
    """One standard error of that, from the images on which the two disagree; None where these are not known."""

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def rows_of(folders: Sequence[str | Path]) -> list[Row]:
    """A row for each run, and one for each dense network that is not among them, which come first.

    >>> [row.name for row in rows_of(["runs/half", "runs/third"])]  # doctest: +SKIP
    ['digitsnet, dense', 'runs/half', 'runs/third']

    Raises CheckpointError for what is no finished run, ConfigError for a run of `sentei fidelity`.
    """
    summaries = {str(folder): _readable(folder) for folder in dict.fromkeys(map(Path, folders))}
    pick = _latencies({name: _entries(Path(name), summary) for name, summary in summaries.items()})
    rows = [_row(name, summary, pick(name)) for name, summary in summaries.items()]
    dense = _dense_networks(rows, summaries, pick)
    known = {_figures(row): checksum for checksum, row in dense.items()}
    rows = [replace(r, dense=known.get(_figures(r))) if r.role == "dense" else r for r in rows]
    trained = {r.dense for r in rows if r.role == "dense"}
    return [*(row for checksum, row in dense.items() if checksum not in trained), *rows]


def row_of(folder: str | Path) -> Row:
    """The row of one run, without latency."""
    return _row(str(folder), _readable(folder), {})


def tested_images(summary: Mapping[str, Any]) -> int | None:
    """Test images, where the metric is the share of them that is right."""
    return summary["data_description"].get("test") or None if counts_images(summary) else None


def counts_images(told: Mapping[str, Any]) -> bool:
    """Whether the metric, of a summary or a plan, is the share of images that is right."""
    return bool(told["task"] == "classification" and told["metric"]["name"] == "accuracy")


def _readable(folder: str | Path) -> dict[str, Any]:
    summary = read_summary(folder)
    if summary["verb"] not in ("train", "prune"):
        raise ConfigError(
            f"{folder} is a run of `sentei {summary['verb']}`, which has no network as its result; compare runs of "
            "`sentei train` and `sentei prune`"
        )
    return summary


def _row(name: str, summary: Mapping[str, Any], latency: Mapping[str, Any]) -> Row:
    if summary["verb"] == "train":
        images = summary.get("images_trained")
        seconds = sum(summary.get("seconds", {}).values())
        return _network(name, "dense", None, summary, summary, summary, images, seconds, latency.get("dense"))
    seconds, images = summary.get("seconds", {}).get("total"), summary.get("images_trained")
    dense = read_config(name)["resolved"].get("base_sha256")
    found = _network(
        name, "pruned", summary["method"], summary, summary["pruned"], summary["base"], images, seconds,
        latency.get("small"),
    )  # fmt: skip
    gap, error = _to_dense(summary)
    return replace(found, dense=dense, taught=summary.get("taught"), to_dense=gap, to_dense_error=error)


def _to_dense(summary: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """How far the test metric is from that of the dense network, and one standard error of that."""
    before, after = (summary[role][summary["metric"]["name"]] for role in ("base", "pruned"))
    if before is None or after is None:
        return None, None
    return after - before, error_to_dense(summary.get("answers"))


def _network(
    name: str,
    role: str,
    method: str | None,
    summary: Mapping[str, Any],
    figures: Mapping[str, Any],
    whole: Mapping[str, Any],
    images: Mapping[str, int] | None,
    seconds: float | None,
    latency: Mapping[str, Any] | None,
) -> Row:
    metric, counted = summary["metric"], tested_images(summary)
    test = figures.get(metric["name"])
    error = None if test is None or counted is None else binomial_error(test, counted)
    described = summary["data_description"]
    seen = {part: described.get(part) for part in ("train", "val", "test", "content")}
    return Row(
        name, role, method, metric, test, error, figures.get(f"val_{metric['name']}"),
        figures["macs"], figures["macs"] / max(whole["macs"], 1),
        figures["params"], figures["params"] / max(whole["params"], 1),
        seconds, images, {"name": summary["data"], **seen}, None, latency,
    )  # fmt: skip


def _dense_networks(
    rows: Sequence[Row], summaries: Mapping[str, Mapping[str, Any]], pick: Pick
) -> dict[str | None, Row]:
    """The network that each pruned one comes from, by the checksum of its weights."""
    found: dict[str | None, Row] = {}
    for row in rows:
        if row.role == "pruned" and row.dense not in found:
            summary, latency = summaries[row.name], pick(row.name).get("dense")
            base, title = summary["base"], f"{Path(summary['model']).name}, dense"
            whole = _network(title, "dense", None, summary, base, base, None, None, latency)
            found[row.dense] = replace(whole, dense=row.dense)
    return found


def _figures(row: Row) -> tuple[Any, ...]:
    """By what the dense network of a training is known again: the checksum of its weights is not noted there."""
    return row.macs, row.params, row.test, row.val, row.data["content"]


# -- latency

Pick = Callable[[str], dict[str, Mapping[str, Any]]]
"""For the name of a run, what was measured of its networks by role."""


def _entries(folder: Path, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was measured of a run, oldest first: for its budget, and by `sentei bench`, if that file can be read."""
    try:
        return [*_for_its_budget(summary), *read_bench(folder / BENCH)]
    except CheckpointError:
        return _for_its_budget(summary)


def _for_its_budget(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a run measured because its budget limits milliseconds, older than all that `sentei bench` measured of it."""
    found = measured_for_budget(summary)
    if found is None:
        return []
    networks = [{"name": role, "role": role, "ms": found[f"{role}_ms"]} for role in ("dense", "small")]
    return [{**found, "by": "prune", "when": "", "networks": networks}]


def _conditions(entry: Mapping[str, Any]) -> str:
    return json.dumps({name: entry.get(name) for name in CONDITIONS}, sort_keys=True)


def _latencies(entries: Mapping[str, Sequence[Mapping[str, Any]]]) -> Pick:
    """The newest entry of each run, among those under conditions that all runs with entries share, if there are any."""
    sets = [set(map(_conditions, found)) for found in entries.values() if found]
    shared = set.intersection(*sets) if sets else set()
    fitting = [entry for found in entries.values() for entry in found if _conditions(entry) in shared]
    wanted = _conditions(max(fitting, key=_when)) if fitting else None

    def pick(name: str) -> dict[str, Mapping[str, Any]]:
        found = [e for e in entries.get(name, ()) if wanted is None or _conditions(e) == wanted]
        return _by_role(max(found, key=_when), Path(name).name) if found else {}

    return pick


def _when(entry: Mapping[str, Any]) -> str:
    return str(entry.get("when", ""))


def _by_role(entry: Mapping[str, Any], name: str) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for network in entry["networks"]:
        role = network.get("role")
        if role in ("dense", "small") and (role not in found or Path(str(network.get("name"))).name == name):
            measured = {key: network.get(key) for key in ("ms", "ms_low", "ms_high")}
            found[role] = {**measured, **{key: entry.get(key) for key in (*CONDITIONS, "when")}}
    return found


# -- what keeps figures from being compared


def warnings_of(rows: Sequence[Row]) -> list[str]:
    """A sentence for each reason why these rows cannot be compared; none if they can."""
    data = _apart(rows, lambda r: f"{r.data['name']}, content {r.data['content']}")
    metrics = _apart(rows, lambda r: str(r.metric["name"]))
    dense = _apart([r for r in rows if r.dense], lambda r: f"weights {r.dense}")
    timed = _apart([r for r in rows if r.latency], lambda r: _told_conditions(r.latency or {}))
    strangers = [r.name for r in rows if r.role == "dense" and r.dense is None]
    pruned = [r for r in rows if r.role == "pruned"]
    known = [r for r in pruned if r.taught is not None]
    taught = _apart(known, lambda r: "taught" if r.taught else "not taught")
    found = {
        f"The data differ, so that the metrics say nothing about each other: {data}": data,
        f"The metrics differ and cannot be compared: {metrics}": metrics,
        f"The dense networks differ, and a better result may come from a better start: {dense}": dense,
        f"Only some were taught by the dense network, which may matter more than the method: {taught}": taught,
        f"Not the network that was pruned: {', '.join(strangers)}": strangers and pruned,
        f"The latencies were not measured alike and cannot be compared: {timed}": timed,
    }
    return [sentence for sentence, holds in found.items() if holds]


def _apart(rows: Iterable[Row], key: Callable[[Row], str]) -> str | None:
    """Which rows differ in something; None if they agree."""
    parts: dict[str, list[str]] = {}
    for row in rows:
        parts.setdefault(key(row), []).append(row.name)
    return "; ".join(f"{k} ({', '.join(names)})" for k, names in parts.items()) if len(parts) > 1 else None


def _told_conditions(given: Mapping[str, Any]) -> str:
    machine = given.get("machine")
    where = (machine.get("gpu") or machine.get("cpu") or machine) if isinstance(machine, Mapping) else machine
    return f"{told_latency(given)}, {where}"


def told_latency(given: Mapping[str, Any]) -> str:
    """How a latency was measured, in short."""
    threads = f"{given['threads']} thread{'s' * (given['threads'] != 1)}"
    how = ", measured for its budget" if given.get("by") else ""
    return f"{given['runtime']}, {threads}, batch {given['batch']}, {given['device']}{how}"
