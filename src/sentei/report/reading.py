"""What a report reads of a finished run: summary, config, journal, and what other commands put beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sentei.errors import CheckpointError
from sentei.runfiles import BENCH, JOURNAL, SIDECAR, read_config, read_summary
from sentei.schema import BenchEntry, BenchNetwork, Open, validated
from sentei.sealed import read_line
from sentei.speed.benchfile import measured_for_budget, read_bench
from sentei.speed.runtimes import SHOWN

Record = dict[str, Any]


@dataclass(frozen=True)
class Speed:
    """Milliseconds a pass of the dense and of the small network, measured side by side."""

    place: str
    """Where it was measured, in words."""
    cpu: str
    dense_ms: float
    small_ms: float
    speedup: float | None
    interval: tuple[float | None, float | None] = (None, None)


class Timed(BenchEntry):
    """One measurement of `sentei bench`."""

    def network(self, role: str) -> BenchNetwork | None:
        return next((n for n in self.networks if n.role == role), None)

    @property
    def place(self) -> str:
        """Where it was measured, in words."""
        return place_told(self.runtime, self.threads, self.batch, self.device)

    @property
    def speed(self) -> Speed | None:
        """None where one of the two networks was measured alone."""
        dense, small = self.network("dense"), self.network("small")
        if dense is None or small is None:
            return None
        cpu, interval = str(self.machine.get("cpu", "")), (self.speedup_low, self.speedup_high)
        return Speed(self.place, cpu, dense.ms, small.ms, self.speedup, interval)


def place_told(runtime: str, threads: int, batch: int, device: str) -> str:
    """Where something was measured, in words.

    >>> place_told("onnxruntime", 1, 1, "cpu")
    'ONNX Runtime, 1 thread, batch 1, cpu'
    """
    return f"{SHOWN.get(runtime, runtime)}, {threads} thread{'s' * (threads != 1)}, batch {batch}, {device}"


class Dense(Open):
    ref: str
    num_classes: int | None = None
    in_channels: int | None = None


class DataRef(Open):
    data: str | None = None
    task: str | None = None


class Command(Open):
    """The command that a run was made with, as far as a reader needs it to load the network again."""

    model: str
    dense: Dense
    data: DataRef

    @property
    def trust(self) -> str:
        """The flag that the run's own code needs; empty if there is none."""
        named = (self.model, self.dense.ref, self.data.data, self.data.task)
        return " --trust" if any(".py:" in ref for ref in named if ref) else ""


@dataclass(frozen=True)
class RunFiles:
    """A finished run."""

    folder: Path
    summary: Record
    config: Record
    command: Command | None
    records: Sequence[Record] = field(repr=False)
    bench: Sequence[Timed]
    exports: Mapping[str, Record]

    @classmethod
    def read(cls, folder: Path) -> RunFiles:
        """CheckpointError if the run is not finished or one of its files is damaged."""
        summary, config = read_summary(folder), read_config(folder)
        given = config["command"]
        return cls(
            folder, summary, config,
            None if given is None else validated(Command, given, folder / "config.yaml"),
            _journal(folder / JOURNAL), _bench(folder / BENCH),
            {file.name: json_of(file) for file in sorted(folder.glob(f"*{SIDECAR}"))},
        )  # fmt: skip

    @property
    def pruned(self) -> bool:
        return bool(self.summary["verb"] == "prune")

    @property
    def metric(self) -> str:
        return str(self.summary["metric"]["name"])

    @property
    def percent(self) -> bool:
        return bool(self.summary["metric"]["percent"])

    @cached_property
    def result(self) -> Record:
        """Figures of the network that the run holds."""
        return self.summary["pruned"] if self.pruned else self.summary

    @cached_property
    def epochs(self) -> dict[str, list[Record]]:
        """Records of each training, by its name, in the order in which they were begun."""
        out: dict[str, dict[int, Record]] = {}
        for record in self.records:
            if record.get("event") == "epoch" and isinstance(record.get("epoch"), int):
                out.setdefault(str(record.get("name")), {})[record["epoch"]] = record
        return {name: [by_epoch[n] for n in sorted(by_epoch)] for name, by_epoch in out.items()}

    @cached_property
    def fitnesses(self) -> list[float]:
        """Of the structures that a search measured in full, in their order."""
        found = [r for r in self.records if r.get("event") == "evaluation" and r.get("share") == 1.0]
        return [float(r["fitness"]) for r in found if is_number(r.get("fitness"))]

    @cached_property
    def speeds(self) -> list[Speed]:
        """Measurements of the dense and the small network side by side, oldest first; what was measured because the
        budget limits milliseconds is the first."""
        found = measured_for_budget(self.summary)
        own = [] if found is None else [
            Speed(place_told(*(found[name] for name in ("runtime", "threads", "batch", "device"))),
                  str(found["machine"].get("cpu", "")), found["dense_ms"], found["small_ms"],
                  found["dense_ms"] / found["small_ms"])
        ]  # fmt: skip
        return [*own, *(speed for entry in self.bench if (speed := entry.speed) is not None)]

    @cached_property
    def speed(self) -> Speed | None:
        """The latest of them."""
        return self.speeds[-1] if self.speeds else None


def is_number(value: object) -> bool:
    """Whether a value can be shown in a chart or a table of numbers."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _journal(file: Path) -> list[Record]:
    """Whole records; the file is left as it is."""
    try:
        lines = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [record for line in lines if (record := read_line(line)) is not None]


def _bench(file: Path) -> list[Timed]:
    return [validated(Timed, entry, file) for entry in read_bench(file)] if file.is_file() else []


def json_of(file: Path) -> Record:
    """An object from a file; CheckpointError if it holds none."""
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: {error}. Make it anew, or remove it") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} holds a {type(found).__name__}; expected an object. Make it anew, or remove it")
    return found
