"""Samples as the rows of a few tensors: a million of them without a Python object for each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

S = TypeVar("S")


@dataclass(frozen=True)
class Rows(Sequence[S]):
    """Samples with a label each, made one by one when they are asked for."""

    labels: Tensor
    """Class numbers, int64."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def row(self, index: int) -> S:
        """One sample."""

    @abstractmethod
    def take(self, indices: Tensor) -> Self:
        """The rows at the given places, in their order."""

    def __getitem__(self, index: Any) -> Any:
        return self.take(torch.arange(len(self))[index]) if isinstance(index, slice) else self.row(index)

    def only(self, classes: Sequence[int]) -> Self:
        """The rows of some classes, whose labels become 0, 1, ... in the order given."""
        kept, labels = of_classes(self.labels, classes)
        return replace(self if len(kept) == len(self) else self.take(kept), labels=labels)


def of_classes(labels: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Indices of what belongs to some classes, and its labels as places among them.

    >>> of_classes(torch.tensor([3, 0, 5, 3]), [3, 5])
    (tensor([0, 2, 3]), tensor([0, 1, 0]))
    """
    places = torch.full((max([*classes, *labels.unique().tolist()]) + 1,), -1)
    places[list(classes)] = torch.arange(len(classes))
    new = places[labels]
    kept = (new >= 0).nonzero().flatten()
    return kept, new[kept]
