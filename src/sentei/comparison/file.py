"""The folder of a comparison and its `compare.json`.

A comparison is a folder: a run directory METHOD-BUDGET-sSEED for each run, as `sentei.prune` makes it, and
`compare.json`, written anew after each run and closed by a checksum:

    {"format": "sentei compare", "version": 1,
     "plan": {"model": reference or class, "data": reference, "task": name,
              "metric": {"name", "lower_is_better", "percent"},
              "dense": {"test", "val", "macs", "params", "ms"},  the dense network; null until a run has measured it
              "total_images": n,                                 of each run
              "epoch_images": n, "batch_images": n,              of an epoch and of a batch
              "counted": {"test": n or null, "val": n or null},  images of an accuracy; null where the metric is another
              "methods": {label: {"method": name, "settings": {...}}, ...},   uniform among them
              "budgets": [{"macs": 0.5}, ...], "seeds": [0, 1, 2], "added": whether uniform had to be added,
              "shared": {...}},                                  what all runs have in common, as config.yaml has it
     "runs": [{"folder": name, "method": label, "budget": {...}, "seed": n,
               "state": "waiting" | "finished" | "failed", "error": text or null,
               "result": null or {"test", "val", "macs", "macs_share", "params", "params_share", "seconds", "ms",
                                  "ms_share", "images": {"search", "sparse", "supernet", "finetune", "total"},
                                  "answers": which test images were right, text (see `sentei.answers`), or null}}, ...],
     "results": [{"method", "budget", "finished", "waiting": counts, "failed": [texts],
                  "test", "val", "seconds": {"mean", "deviation", "count"} or null,
                  "macs", "macs_share", "params", "params_share", "ms", "ms_share": means, "images": {phase: mean},
                  "difference": to uniform, null for it and where no seed has finished with both:
                      {"mean", "count", "low", "high", "p", "seed_error", "test_error", "p_holm", "told_apart"},
                  "sentence": what it means, null for uniform}, ...],
     "sha256": ...}

Shares are of one; `ms` are milliseconds a pass where a budget limits them, else null. `mean` of a difference is in
units of the metric.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentei.atomic import write_atomic
from sentei.comparison.results import figure_of, results_of
from sentei.errors import CheckpointError, ConfigError
from sentei.lock import FolderLock
from sentei.runs import differences
from sentei.schema import Compared, validated
from sentei.sealed import read_json, sealed_json

COMPARE = "compare.json"
LATENCY = "latency.json"
"""The latency table of all runs, where budgets limit milliseconds."""
FORMAT = {"format": "sentei compare", "version": 1}


@dataclass
class Comparison:
    """What a folder of a comparison holds; the parts are those of its `compare.json` (see the head of this module)."""

    folder: Path
    plan: dict[str, Any]
    runs: list[dict[str, Any]]

    @property
    def results(self) -> list[dict[str, Any]]:
        """For each budget and method: means, spread over seeds, difference to uniform, and what that means."""
        return results_of(self.plan, self.runs)

    @property
    def sentences(self) -> list[str]:
        """Of every method but uniform, at every budget: better, worse, or not told apart from it."""
        return [f"{found['sentence']}." for found in self.results if found["sentence"]]

    @property
    def figure(self) -> str:
        """The split that methods are judged on: "test", or "val" where there are no test images."""
        return figure_of(self.runs)

    def note(self, folder: str) -> dict[str, Any]:
        """What is known of the run in a folder."""
        return next(run for run in self.runs if run["folder"] == folder)

    def write(self) -> None:
        write_atomic(self.folder / COMPARE, sealed_json(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        return {**FORMAT, "plan": self.plan, "runs": self.runs, "results": self.results}


def read_comparison(folder: str | Path) -> Comparison:
    """What a folder of a comparison holds; CheckpointError if it is none, or was altered."""
    file = Path(folder) / COMPARE
    try:
        found = read_json(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{folder} holds no comparison: cannot read {file} ({error.strerror})") from error
    if found is None:
        raise CheckpointError(f"{file} is damaged or was changed afterwards: its checksum does not match")
    validated(Compared, found, file)
    return Comparison(Path(folder), found["plan"], found["runs"])


@contextmanager
def opened(folder: Path, plan: dict[str, Any], runs: list[dict[str, Any]]) -> Iterator[Comparison]:
    """The comparison in a folder, as far as it has got; the folder belongs to this process meanwhile."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; choose another folder")
    foreign = folder.is_dir() and any(not p.name.startswith(".") for p in folder.iterdir())
    if foreign and not (folder / COMPARE).exists():
        raise ConfigError(f"{folder} is not empty and holds no comparison; choose another folder")
    lock = FolderLock(folder)
    try:
        for left in folder.glob(f".{COMPARE}.*.tmp"):
            left.unlink(missing_ok=True)
        comparison = Comparison(folder, plan, runs)
        if (folder / COMPARE).exists():
            _take_over(comparison, read_comparison(folder))
        comparison.write()
        yield comparison
    finally:
        lock.release()


def _take_over(comparison: Comparison, before: Comparison) -> None:
    """Results of runs that are asked for again; ConfigError if the settings are others."""
    given, stored = comparison.plan, before.plan
    shared = [label for label in given["methods"] if label in stored["methods"]]
    pairs = [({"": stored["shared"]}, {"": given["shared"]})]
    pairs += [({label: stored["methods"][label]}, {label: given["methods"][label]}) for label in shared]
    for old, new in pairs:
        if (found := next(differences(old, new), None)) is not None:
            name, was, now = found
            raise ConfigError(
                f"{comparison.folder} holds a comparison with other settings: {name.removeprefix('.')} is {was!r} "
                f"there, {now!r} now. Give the same settings to go on, or choose another folder"
            )
    comparison.plan["dense"] = stored["dense"]
    known = {run["folder"]: run for run in before.runs}
    for run in comparison.runs:
        run.update(known.get(run["folder"], {}))
