"""The run's journal: one JSON record a line, appended and synced, never rewritten."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sentei.errors import CheckpointError


class Journal:
    """Append-only records that survive a kill; a torn last line is cut off when the journal is opened.

    >>> journal = Journal("run/journal.jsonl")  # doctest: +SKIP
    >>> journal.append({"event": "epoch", "epoch": 1, "accuracy": 0.5})  # doctest: +SKIP
    >>> journal.records()  # doctest: +SKIP
    [{'event': 'epoch', 'epoch': 1, 'accuracy': 0.5}]
    """

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
        line = json.dumps(record, allow_nan=True) + "\n"
        try:
            with open(self.path, "ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CheckpointError(f"Could not append to {self.path}: {error.strerror or error}.") from error

    def records(self) -> list[dict[str, Any]]:
        """All records, oldest first."""
        records = []
        for number, line in enumerate(self.path.read_bytes().splitlines(), 1):
            try:
                records.append(json.loads(line))
            except ValueError as error:
                raise CheckpointError(f"{self.path} line {number} is not JSON: {error}") from error
        return records
