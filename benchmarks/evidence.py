"""The evidence ledger: experiments at equal cost, made whenever a core is idle, and the tables made of them.

    python benchmarks/evidence.py run --minutes 60 --data-root DATA      # the next missing experiments
    python benchmarks/evidence.py plan                                   # which there are, which are done
    python benchmarks/evidence.py tables                                 # Markdown, from the ledger alone

Finished experiments are lines of benchmarks/ledger/*.jsonl, to be committed. `run` takes half-finished ones first, then
the next of the plan; it may be killed at any point, and several may run at once: none does what another one is doing.
Each experiment is a process of its own with the threads that OMP_NUM_THREADS allows; --workers says how many at once,
which is for a GPU (--device cuda): on a CPU they only take the threads from each other. --trial makes every experiment
with a hundredth of its images and keeps it apart, to try a command; `tables --trial` with the same --work shows
what came out. ResNet-56 needs --resnet56, the public weights. The plan is benchmarks/ledger/plan.py, where another
experiment is one more row. To make one again, remove its line from the ledger and its folder from --work.
"""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ledger.book import FOLDER, Ledger, claimed, is_claimed
from ledger.plan import EPOCH, Row, plan

FILES = "cifar-10-batches-py"
TRIAL = 100
"""By what images are divided in a trial."""


def main() -> None:
    given = arguments()
    rows, ledger, given.runs = wanted(given.only), Ledger(FOLDER), given.work
    if given.trial:
        rows, given.work = [replace(row, epoch=EPOCH // TRIAL) for row in rows], given.work / "trial"
        ledger = Ledger(given.work / "ledger")
    if given.verb == "tables":
        from ledger.tables import tables

        if given.trial:
            print(f"A trial, {ledger.folder}: with a hundredth of the images these figures mean nothing.\n")
        print(tables([line for line in ledger.lines() if given.only in line["name"]]))
    elif given.verb == "plan":
        show(rows, ledger, given.work)
    elif given.verb == "row":
        one(rows[0], ledger, given)
    elif not Work(rows, ledger, given).run():
        sys.exit(1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("run", "plan", "tables", "row"), help="row: the one named by --only, here")
    parser.add_argument("--minutes", type=float, default=60, help="what is not finished then goes on next time")
    parser.add_argument("--data-root", help=f"folder that holds {FILES}")
    parser.add_argument("--resnet56", help="public weights of ResNet-56; without them its experiments wait")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"), help="folder of half-finished experiments")
    parser.add_argument("--only", default="", help="experiments whose name has this in it, with every verb")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, help="experiments at once; 1, and 8 on a GPU")
    parser.add_argument("--trial", action="store_true", help="a hundredth of the images, kept apart")
    given = parser.parse_args()
    if given.verb in ("run", "row") and not (Path(given.data_root or "") / FILES).is_dir():
        parser.error(f"--data-root is {given.data_root}; expected the folder that holds {FILES}")
    if given.verb == "row" and wanted(given.only)[0].name != given.only:
        parser.error(f"--only is {given.only!r}; row expected the whole name of an experiment of the plan")
    given.workers = given.workers or (8 if given.device == "cuda" else 1)
    return given


def wanted(only: str) -> list[Row]:
    """The rows of the plan that have this in their names; of the one that is called so, that one alone."""
    rows = plan()
    found = [row for row in rows if row.name == only] or [row for row in rows if only in row.name]
    if not found:
        near = difflib.get_close_matches(only, [row.name for row in rows], n=3, cutoff=0)
        sys.exit(f"no experiment of the plan has {only!r} in its name; the nearest are {', '.join(near)}")
    return found


def show(rows: Sequence[Row], ledger: Ledger, work: Path) -> None:
    done = [line["row"] for line in ledger.lines()]
    for row in rows:
        folder = work / row.name
        state = "done" if row.to_json() in done else "begun" if folder.is_dir() else ""
        print(f"{state:6}{row.name}")
    print(f"{sum(row.to_json() in done for row in rows)} of {len(rows)} done")


@dataclass
class Work:
    """Keeps so many experiments going until the time is up."""

    rows: Sequence[Row]
    ledger: Ledger
    given: argparse.Namespace
    going: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)

    def run(self) -> bool:
        """Whether none of them failed."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that experiments end with it
        end = time.monotonic() + 60 * self.given.minutes
        try:
            while time.monotonic() < end:
                self.reap()
                row = self.next() if len(self.going) < self.given.workers else None
                if row is not None:
                    self.start(row)
                elif not self.going:
                    break
                else:
                    time.sleep(0.5)
        finally:
            for process in self.going.values():
                process.send_signal(signal.SIGTERM)
            for process in self.going.values():
                process.wait()
        left = [row for row in self.rows if not self.ledger.has(row)]
        done = len(self.rows) - len(left)
        print(f"{done} of {len(self.rows)} experiments are done, in {self.ledger.folder}", flush=True)
        if waiting := sum(map(self.waits, left)):
            print(f"{waiting} wait for --resnet56, the public weights", flush=True)
        return not self.failed

    def next(self) -> Row | None:
        """A half-finished row, failing that the first of the plan; none that is done, failed or in other hands."""
        done = [line["row"] for line in self.ledger.lines()]
        passed = {*self.going, *self.failed}
        open_rows = [row for row in self.rows if row.name not in passed and row.to_json() not in done]
        ready = [row for row in open_rows if not self.waits(row)]
        for row in sorted(ready, key=lambda row: not self.folder(row).is_dir()):
            if not self.folder(row).is_dir() or not is_claimed(self.folder(row)):
                return row
        return None

    def waits(self, row: Row) -> bool:
        return row.network == "resnet56" and not self.given.resnet56

    def folder(self, row: Row) -> Path:
        return self.given.work / row.name

    def start(self, row: Row) -> None:
        print(f"{time.strftime('%H:%M')} {row.name}", flush=True)
        again = [sys.executable, __file__, "row", "--only", row.name, "--device", self.given.device]
        again += ["--data-root", self.given.data_root, "--work", str(self.given.runs)]
        again += ["--resnet56", self.given.resnet56] if self.given.resnet56 else []
        again += ["--trial"] if self.given.trial else []
        self.folder(row).mkdir(parents=True, exist_ok=True)
        with open(self.folder(row) / "log", "ab") as log:
            self.going[row.name] = subprocess.Popen(again, stdout=log, stderr=log)

    def reap(self) -> None:
        for name, process in list(self.going.items()):
            if process.poll() is not None:
                del self.going[name]
                if process.returncode:
                    self.failed.add(name)
                    print(f"      {name} failed, see {self.given.work / name / 'log'}", flush=True)


def one(row: Row, ledger: Ledger, given: argparse.Namespace) -> None:
    """Make one experiment in this process, unless it is done or somebody else is at it."""
    from ledger.rows import ground, made
    from sentei.threads import set_threads

    set_threads()
    folder = given.work / row.name
    with claimed(folder) as mine:
        if mine and not ledger.has(row):
            ledger.append(row, made(row, folder, *ground(row, given.data_root, given.resnet56, given.device)))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
