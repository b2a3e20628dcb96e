"""Batches that are gone through again and again: kept in memory where they fit, drawn anew where they do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sentei.data.batches import tensors_of
from sentei.data.splits import Split

MEMORY = 2**31
"""Bytes that may be kept."""


@dataclass(frozen=True)
class Redrawn:
    """The same batches each time, from their split."""

    split: Split
    batch_size: int
    how: dict[str, Any]

    def __iter__(self) -> Iterator[Any]:
        return self.split.batches(self.batch_size, **self.how)


def held(split: Split, batch_size: int, memory: int = MEMORY, **how: Any) -> list[Any] | Redrawn:
    """Batches of a split, drawn as `Split.batches` is told to, that can be gone through again.

    >>> held(data.val, 500, limit=2000)  # doctest: +SKIP
    """
    kept, size = [], 0
    for batch in split.batches(batch_size, **how):
        size += sum(t.nbytes for t in tensors_of(batch))
        if size > memory:
            return Redrawn(split, batch_size, how)
        kept.append(batch)
    return kept
