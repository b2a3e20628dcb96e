"""Shards that have to be fetched, fetched before their samples are wanted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np

from sentei.data.shardfiles import ShardFiles
from sentei.errors import DataError

AHEAD = 4
"""How many shards beyond those that are being read."""


@contextmanager
def fetched_ahead(files: ShardFiles, wanted: np.ndarray) -> Iterator[Callable[[int], None]]:
    """Fetch shards in a thread, in the order in which samples want them: `wanted` is the shard of each, int [n].

    >>> with fetched_ahead(files, shards) as read:  # doctest: +SKIP
    ...     read(64)  # so many samples were read by now
    """
    fetching = _Fetching(files, wanted)
    fetching.start()
    try:
        yield fetching.read
    finally:
        fetching.close()


class _Fetching(threading.Thread):
    def __init__(self, files: ShardFiles, wanted: np.ndarray) -> None:
        super().__init__(name="shards", daemon=True)  # nobody waits for a shard that is not wanted any more
        numbers, first = np.unique(wanted, return_index=True)
        self.files, self.turns = files, sorted(zip(first.tolist(), numbers.tolist(), strict=True))
        self.margin = AHEAD * len(wanted) // max(len(numbers), 1)
        self.count, self.closed, self.changed = 0, False, threading.Condition()

    def read(self, count: int) -> None:
        with self.changed:
            self.count = count
            self.changed.notify()

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify()

    def run(self) -> None:
        for first, number in self.turns:
            with self.changed:
                while not self.closed and first > self.count + self.margin:
                    self.changed.wait()
                if self.closed:
                    return
            with suppress(DataError):  # whoever reads a sample of it says what is wrong
                self.files.path(number)
