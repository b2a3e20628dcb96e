"""bench.json: what was measured, one entry after another, oldest first."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from sentei.atomic import write_atomic
from sentei.errors import CheckpointError
from sentei.schema import BenchFile, validated
from sentei.sealed import read_json, sealed_json
from sentei.speed.bench import Bench, Comparison, Measured
from sentei.speed.layers import LayerTimes

FORMAT, VERSION = "sentei bench", 1
Role = Literal["dense", "small", "other"]


def read_bench(path: str | Path) -> list[dict[str, Any]]:
    """The entries of a file; CheckpointError if it is missing, damaged or of another version.

    >>> read_bench("runs/half/bench.json")[-1]["speedup"]  # doctest: +SKIP
    1.87
    """
    path = Path(path)
    try:
        found = read_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}. `sentei bench` writes such a file") from error
    if found is None:
        raise CheckpointError(
            f"{path} is damaged or was changed afterwards: its checksum does not match. Move it away to measure anew"
        )
    validated(BenchFile, found, path)
    entries: list[dict[str, Any]] = found["entries"]
    return entries


def measured_for_budget(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a run measured because its budget limits milliseconds: where, as entries of bench.json say it, and
    `dense_ms` and `small_ms` of a pass. None for a run without such a budget.
    """
    found, machine = summary.get("latency"), summary.get("machine", {})
    if found is None:
        return None
    device = machine.get("device", "cpu") if found["runtime"] in ("eager", "compile") else "cpu"
    about = {name: value for name, value in machine.items() if name in ("cpu", "gpu")}
    place = {"runtime": found["runtime"], "threads": found.get("threads", 1), "batch": 1, "device": device}
    return {**place, "machine": about, "dense_ms": found["dense_ms"], "small_ms": found["small_ms"]}


def append_bench(path: str | Path, entries: Sequence[dict[str, Any]]) -> None:
    """Add entries to a file, or begin one; it is written as a whole. CheckpointError as `read_bench`, and if the disk
    does not take it."""
    path = Path(path)
    before = read_bench(path) if path.exists() else []
    write_atomic(path, sealed_json(as_file([*before, *entries])))


def as_file(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"format": FORMAT, "version": VERSION, "entries": list(entries)}


def entry_of(found: Bench, name: str, role: Role, first: Role = "dense") -> dict[str, Any]:
    """What was found about one network: beside the first, or alone where it is the first."""
    networks = {network.name: network for network in found.networks}
    compared = next((c for c in found.comparisons if c.name == name), None)
    base = found.networks[0]
    rows = [_network(base, first)] if compared is None else [_network(base, first), _network(networks[name], role)]
    return {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "runtime": found.runtime, "threads": found.threads, "batch": found.batch, "device": found.device,
        "clock": found.clock, "inputs": found.inputs, "machine": dict(found.machine),
        "versions": dict(found.versions), "networks": rows, **_compared(compared), "rounds": found.rounds,
        "sure": found.sure, "layers": [] if compared is None else [_layer(layer) for layer in compared.layers],
        "rest_ms": None if compared is None or compared.rest_ms is None else list(compared.rest_ms),
    }  # fmt: skip


def _network(network: Measured, role: Role) -> dict[str, Any]:
    return {
        "name": network.name, "role": role, "ms": network.ms.value, "ms_low": network.ms.low,
        "ms_high": network.ms.high, "macs": network.macs, "params": network.params,
        "memory_bytes": network.memory_bytes,
    }  # fmt: skip


def _compared(found: Comparison | None) -> dict[str, float | None]:
    if found is None:
        return dict.fromkeys(("speedup", "speedup_low", "speedup_high", "macs_kept", "efficiency"))
    return {
        "speedup": found.speedup.value, "speedup_low": found.speedup.low, "speedup_high": found.speedup.high,
        "macs_kept": found.macs_kept, "efficiency": found.efficiency,
    }  # fmt: skip


def _layer(layer: LayerTimes) -> dict[str, Any]:
    return {
        "name": layer.name, "dense_ms": layer.dense_ms, "small_ms": layer.small_ms,
        "dense_width": layer.dense.outputs, "small_width": layer.small.outputs,
        "dense_inputs": layer.dense.inputs, "small_inputs": layer.small.inputs,
        "share_macs": layer.share_macs, "note": layer.note,
    }  # fmt: skip
