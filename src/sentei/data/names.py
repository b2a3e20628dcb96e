"""Many names in little memory: bytes one after another and where each begins, which processes share as they are."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import torch
from torch import Tensor


@dataclass(frozen=True)
class Names(Sequence[str]):
    """Texts, such as a million file names, without a Python object for each.

    >>> names = Names.of(["a.jpg", "b/c.png", "d.jpg"])
    >>> len(names), names[1], list(names.take(torch.tensor([2, 0])))
    (3, 'b/c.png', ['d.jpg', 'a.jpg'])

    Worker processes share the tensors, where a list of texts would be copied to each as soon as it is looked at.
    """

    letters: Tensor
    """Bytes of all texts."""
    begins: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, texts: Iterable[str]) -> Names:
        letters, lengths = bytearray(), array("i")
        for text in texts:
            coded = os.fsencode(text)
            letters += coded
            lengths.append(len(coded))
        counts = torch.tensor(lengths, dtype=torch.int32)
        begins = counts.cumsum(0, dtype=torch.int64) - counts
        return cls(torch.frombuffer(letters or bytearray(1), dtype=torch.uint8).clone(), begins, counts)

    def __len__(self) -> int:
        return len(self.begins)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Names: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return replace(self, begins=self.begins[index], lengths=self.lengths[index])
        begin, length = self.begins.numpy()[index], self.lengths.numpy()[index]  # faster than by torch
        return os.fsdecode(self.letters.numpy()[begin : begin + length].tobytes())

    def take(self, indices: Tensor) -> Names:
        """Those at the given places, in their order; the bytes are shared."""
        return replace(self, begins=self.begins[indices], lengths=self.lengths[indices])
