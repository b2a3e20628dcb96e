"""A part of a data set: some of its classes, some images of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypeVar

import torch
from torch import Tensor

from sentei.data.rows import Rows
from sentei.data.splits import epoch_generator
from sentei.errors import DataError

R = TypeVar("R", bound=Rows)


@dataclass(frozen=True)
class Subset:
    """Which classes, and how many training images of each; what is drawn follows from a seed.

    >>> Subset(classes=("cat", "dog")).classes_of("pets", ["bird", "cat", "dog"], seed=0)
    [1, 2]
    """

    classes: int | tuple[str, ...] | None = None
    """So many, drawn at random, or those named; None is all. They keep their order and are numbered anew from 0."""
    per_class: int | None = None
    """Training images of each class at most, drawn at random; what is held out for validation is among them."""

    def __post_init__(self) -> None:
        if isinstance(self.classes, int) and self.classes < 2:
            raise DataError(f"classes={self.classes}; expected 2 or more, or names.")
        if isinstance(self.classes, tuple) and len(set(self.classes)) < 2:
            raise DataError(f"classes={self.classes!r}; expected a number, or two names or more.")
        if self.per_class is not None and self.per_class < 1:
            raise DataError(f"per_class={self.per_class}; expected 1 or more.")

    def classes_of(self, ref: str, names: Sequence[str], seed: int) -> list[int]:
        """Numbers of the classes that are kept, rising."""
        if self.classes is None:
            return list(range(len(names)))
        if isinstance(self.classes, int):
            if self.classes > len(names):
                raise DataError(f"{ref} has {len(names)} classes, fewer than the {self.classes} asked for.")
            drawn = torch.randperm(len(names), generator=epoch_generator(seed, -2))[: self.classes]
            return sorted(drawn.tolist())
        numbers = {name: number for number, name in enumerate(names)}
        for name in self.classes:
            if name not in numbers:
                near = get_close_matches(name, names, 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise DataError(f"{ref} has no class {name!r}.{hint} It has {', '.join(map(str, names[:20]))}.")
        return sorted(numbers[name] for name in set(self.classes))

    def kept(self, labels: Tensor, seed: int) -> Tensor:
        """Indices, rising, of at most `per_class` samples of each label."""
        order = torch.randperm(len(labels), generator=epoch_generator(seed, -3))
        by_class = order[labels[order].argsort(stable=True)]
        counts = torch.bincount(labels)
        rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
        return by_class[rank < (self.per_class or len(labels))].sort().values

    def capped(self, rows: R, seed: int) -> R:
        """Rows of which each class has at most `per_class`."""
        return rows if self.per_class is None else rows.take(self.kept(rows.labels, seed))


ALL = Subset()
