"""The run's journal: one JSON record a line, each with a checksum, appended and synced, never rewritten."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from sentei.errors import CheckpointError
from sentei.sealed import read_line, sealed_line


class Journal:
    """Append-only records that survive a kill; a torn last line is cut off when the journal is opened.

    >>> journal = Journal("run/journal.jsonl")  # doctest: +SKIP
    >>> journal.append({"event": "epoch", "epoch": 1, "accuracy": 0.5})  # doctest: +SKIP
    >>> journal.records()  # doctest: +SKIP
    [{'event': 'epoch', 'epoch': 1, 'accuracy': 0.5}]

    A line whose checksum does not match is left out, and the log says so: what it told is done again.
    """

    watchers: ClassVar[list[Callable[[dict[str, Any]], None]]] = []
    """Called with each record once it is on the disk."""
    told: ClassVar[set[tuple[Path, int]]] = set()
    """Bad lines that the log has named."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
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

    def append(self, record: dict[str, Any]) -> None:
        """Write one record and wait until it is on the disk."""
        try:
            with open(self.path, "ab") as file:
                file.write(sealed_line(record))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CheckpointError(f"Could not append to {self.path}: {error.strerror or error}.") from error
        for watch in self.watchers:
            watch(record)

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
