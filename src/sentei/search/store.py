"""Every evaluation ever made, one line each: the memory of a search."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sentei.train.journal import Journal

Key = tuple[str, float, tuple[int, ...]]
Record = dict[str, Any]


@dataclass
class Store:
    """Evaluations by evaluator settings, share of effort and widths; appended to a journal if there is one.

    >>> store = Store({"fitness": "recalibrate"}, Journal("run/journal.jsonl"))  # doctest: +SKIP

    A record is written before it is used, so that a kill loses the evaluations in flight and nothing else; `sync` waits
    for the disk. Failures are kept too; those that need not last are forgotten when the journal is read again.
    """

    settings: Mapping[str, Any]
    journal: Journal | None = None
    found: dict[Key, Record] = field(init=False)
    answers: list[Record] = field(init=False)
    """What a steady-state search was told, in that order. A line that was lost ends it: what follows is looked up."""

    def __post_init__(self) -> None:
        text = json.dumps(self.settings, sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.found, self.answers = {}, []
        for record in self.journal.records() if self.journal else []:
            if record.get("event") == "evaluation":
                if record["error"] is None or record.get("lasting", True):
                    self.found[record["evaluator"], record["share"], tuple(record["widths"])] = record
                self._follow(record)
        if self.answers and all(r["error"] is not None for r in self.answers) and self._may_succeed():
            self.answers.clear()

    def get(self, widths: np.ndarray, share: float) -> Record | None:
        return self.found.get(self._key(widths, share))

    def add(self, widths: np.ndarray, share: float, record: Record) -> Record:
        """Note an evaluation."""
        key = self._key(widths, share)
        whole = {"event": "evaluation", **record, "evaluator": self.digest, "share": share, "widths": list(key[2])}
        if self.journal is not None:
            self.journal.append(whole, wait=False)
        self.found[key] = whole
        return whole

    def sync(self) -> None:
        """Wait until every record is on the disk."""
        if self.journal is not None:
            self.journal.sync()

    def _follow(self, record: Record) -> None:
        """Take an answer that comes next; the first one begins anew."""
        place = record.get("answer")
        if place == 0 and record["evaluator"] == self.digest:
            self.answers = [record]
        elif place is not None and record["evaluator"] == self.digest and place == len(self.answers):
            self.answers.append(record)

    def _may_succeed(self) -> bool:
        return any(not r.get("lasting", True) for r in self.answers)

    def _key(self, widths: np.ndarray, share: float) -> Key:
        return self.digest, share, tuple(np.asarray(widths).tolist())
