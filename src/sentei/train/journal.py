"""The run's journal: one JSON record a line, each with a checksum, appended and synced, never rewritten."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from sentei.errors import CheckpointError
from sentei.sealed import read_line, sealed_line

GROUPED = 0.05
"""Seconds for which records may wait for the disk together."""
_sync = getattr(os, "fdatasync", os.fsync)
"""A record is data and the length of the file; macOS has only the other."""


class Journal:
    """Append-only records that survive a kill; a torn last line is cut off when the journal is opened.

    >>> journal = Journal("run/journal.jsonl")  # doctest: +SKIP
    >>> journal.append({"event": "epoch", "epoch": 1, "accuracy": 0.5})  # doctest: +SKIP
    >>> journal.records()  # doctest: +SKIP
    [{'event': 'epoch', 'epoch': 1, 'accuracy': 0.5}]

    A line whose checksum does not match is left out, and the log says so: what it told is done again.
    """

    watchers: ClassVar[list[Callable[[dict[str, Any]], None]]] = []
    """Called with each record once it is written."""
    told: ClassVar[set[tuple[Path, int]]] = set()
    """Bad lines that the log has named."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._failed: CheckpointError | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab+") as file:
                file.seek(0)
                whole = file.read()
                end = whole.rfind(b"\n") + 1
                if end != len(whole):
                    file.truncate(end)
        except OSError as error:
            raise CheckpointError(f"Could not open {self.path}: {error.strerror or error}.") from error

    def append(self, record: dict[str, Any], wait: bool = True) -> None:
        """Write one record and wait until it is on the disk.

        Without `wait` it is handed to the system, where it survives the end of this process, however that comes; the
        disk, which is what a loss of power leaves, has it GROUPED seconds later, together with those that followed, or
        after `sync`. A disk that fails meanwhile is told by the next call.
        """
        try:
            with open(self.path, "ab") as file:
                file.write(sealed_line(record))
                file.flush()
                if wait:
                    os.fsync(file.fileno())
        except OSError as error:
            raise self._error(error) from error
        if not wait:
            self._sync_soon()
        for watch in self.watchers:
            watch(record)

    def sync(self) -> None:
        """Wait until everything that was appended is on the disk."""
        with self._lock:
            waiting, self._timer = self._timer, None
        if waiting is not None:
            waiting.cancel()
        self._reach_disk()  # also where the timer's thread is at it: that may not be done yet
        self._raise()

    def _sync_soon(self) -> None:
        self._raise()
        with self._lock:
            if self._timer is None:
                self._timer = threading.Timer(GROUPED, self._due)
                self._timer.daemon = True
                self._timer.start()

    def _due(self) -> None:
        with self._lock:  # what is appended from here on needs a timer of its own
            self._timer = None
        self._reach_disk()

    def _reach_disk(self) -> None:
        try:
            with open(self.path, "rb+") as file:
                _sync(file.fileno())
        except FileNotFoundError:  # the run was removed meanwhile
            pass
        except OSError as error:
            self._failed = self._error(error)

    def _raise(self) -> None:
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    def _error(self, error: OSError) -> CheckpointError:
        return CheckpointError(f"Could not append to {self.path}: {error.strerror or error}.")

    def records(self) -> list[dict[str, Any]]:
        """All records that are whole, oldest first."""
        return list(self._read())

    def _read(self) -> Iterator[dict[str, Any]]:
        try:
            lines = self.path.read_bytes().split(b"\n")[:-1]
        except OSError as error:
            raise CheckpointError(f"Could not read {self.path}: {error.strerror or error}.") from error
        for number, line in enumerate(lines, 1):
            record = read_line(line)
            if record is not None:
                yield record
            elif (place := (self.path.resolve(), number)) not in self.told:
                self.told.add(place)
                logging.getLogger("sentei").warning(
                    "%s: line %d was altered (its checksum does not match) and is left out; what it told is done again",
                    self.path,
                    number,
                )
