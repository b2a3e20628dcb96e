"""The ledger on disk: one line of JSON for each finished experiment, never changed, only added to."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ledger.plan import Row
from sentei.errors import ConfigError
from sentei.lock import FolderLock

FOLDER = Path(__file__).parent
Line = dict[str, Any]


class Ledger:
    """The lines of a folder's `*.jsonl`, one file for each network.

    >>> Ledger(Path("nothing/there")).lines()
    []
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder

    def lines(self) -> list[Line]:
        """All of them; what a kill has left of a last line is passed over."""
        return [line for file in sorted(self.folder.glob("*.jsonl")) for line in _read(file)]

    def has(self, row: Row) -> bool:
        return any(line["row"] == row.to_json() for line in self.lines())

    def append(self, row: Row, result: Mapping[str, Any]) -> None:
        """Add a line, whole or not at all, unless the row is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{row.network}.jsonl"
        with open(file, "a+b") as out:
            fcntl.lockf(out, fcntl.LOCK_EX)
            if self.has(row):
                return
            line = json.dumps({"name": row.name, "table": row.table, "row": row.to_json(), **result}) + "\n"
            out.seek(0)
            whole = out.read()
            if whole and not whole.endswith(b"\n"):  # what a kill has left
                out.truncate(whole.rfind(b"\n") + 1)
            out.write(line.encode())
            out.flush()
            os.fsync(out.fileno())


def _read(file: Path) -> Iterator[Line]:
    *whole, _ = file.read_text().split("\n")
    yield from (json.loads(line) for line in whole)


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether a row's working folder is this process's own; the claim ends with the process, however that ends."""
    try:
        lock = FolderLock(folder)
    except ConfigError:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def is_claimed(folder: Path) -> bool:
    """Whether somebody is at work on a row."""
    with claimed(folder) as mine:
        return not mine
