"""Batches from a user's own loader: counted, moved to the device, and repeatable by seed and epoch."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from sentei.data.batches import count_of, moved, pieces_of, tensors_of
from sentei.data.splits import WHOLE, Augment, Batches, Part, content_of
from sentei.errors import DataError

END = object()


class LoaderSplit:
    """A split whose batches a user's loader makes; see `Data.of`."""

    def __init__(self, loader: Any, device: torch.device, name: str = "train") -> None:
        self.loader = loader
        self.device, self.name, self.augment = device, name, Augment()
        kind = type(loader).__name__
        if isinstance(loader, Iterator) or not hasattr(loader, "__iter__"):
            raise DataError(
                f"{name} is a {kind}; expected something that can be iterated once an epoch, such as a DataLoader or a "
                "list of batches. A generator can be used up only once: put its batches into a list"
            )
        try:
            self.number: int = len(loader)
        except TypeError as error:
            raise DataError(
                f"{name} is a {kind} without a length, so nobody knows when an epoch ends: give it __len__, or put its "
                "batches into a list"
            ) from error

    def __repr__(self) -> str:
        return f"LoaderSplit({type(self.loader).__name__} of {self.number} batches)"

    def on(self, device: torch.device) -> LoaderSplit:
        other = copy.copy(self)
        other.device = device
        return other

    def refuse_empty(self) -> None:
        if self.number == 0:
            raise DataError(f"{self.name} has no batches")

    @cached_property
    def first(self) -> Any:
        """The first batch of seed 0, where the loader put it."""
        return next(self._fetched(0, 0), None)

    @cached_property
    def images(self) -> int:
        loader = self.loader
        if isinstance(loader, (list, tuple)):
            return sum(map(count_of, loader))
        if isinstance(loader, DataLoader) and loader.batch_size is not None and hasattr(loader.sampler, "__len__"):
            return min(len(loader.sampler), self.number * loader.batch_size)  # type: ignore[arg-type]
        return self.number * count_of(self.first) if self.number else 0

    def __len__(self) -> int:
        return self.images

    @property
    def each(self) -> int:
        """Samples of the first batch."""
        return max(count_of(self.first), 1)

    def steps(self, batch_size: int, limit: int | None = None) -> int:
        return self.number if limit is None else min(self.number, -(-limit // self.each))

    @cached_property
    def note(self) -> str | None:
        """Why its batches do not follow from the seed; None if they do."""
        if isinstance(self.loader, (list, tuple)) or self._same_again():
            return None
        return (
            f"the batches of {self.name} ({type(self.loader).__name__}) do not follow from seed and epoch: a run that "
            "is repeated or resumed ends in other bits. Let it draw from the global random numbers of torch, NumPy or "
            "Python"
        )

    def _same_again(self) -> bool:
        if self.number == 0:
            return True
        mine, other = tensors_of(self.first), tensors_of(next(self._fetched(0, 0), None))
        return len(mine) == len(other) and all(map(torch.equal, mine, other))

    def content(self) -> str:
        """Of every batch in a list, of the first one of a loader."""
        seen = self.loader if isinstance(self.loader, (list, tuple)) else [self.first]
        seen = [] if self.note else seen
        return content_of(f"{self.number} batches", *tensors_of(list(seen)))

    def batches(
        self,
        batch_size: int,
        *,
        train: bool = False,
        seed: int = 0,
        epoch: int = 0,
        limit: int | None = None,
        augment: Augment | None = None,
        part: Part = WHOLE,
        start: int = 0,
    ) -> Batches:
        """The loader's own batches, until `limit` samples are reached; see `Split.batches`.

        Every process fetches all of them, those that `start` leaves out too: only the loader can tell what follows.
        In training each keeps its piece of every batch, otherwise every so many-th whole batch.
        """
        seen = 0
        for number, batch in enumerate(self._fetched(seed, epoch if train else -1)):
            if limit is not None and seen >= limit:
                return
            count = count_of(batch)
            seen += count
            if train and number >= start:
                pieces = part.of if count >= part.of else 1
                yield moved(pieces_of(batch, pieces)[part.index % pieces], self.device)
            elif not train and number // part.of >= start and number % part.of == part.index:
                yield moved(batch, self.device)

    def _fetched(self, seed: int, epoch: int) -> Iterator[Any]:
        numbers = Numbers((seed * 1_000_003 + epoch * 7_919 + 17) % 2**31)
        with numbers:
            self._seed(numbers.seed, epoch)
            batches = iter(self.loader)
        while True:
            with numbers:
                batch = next(batches, END)
            if batch is END:
                return
            yield batch

    def _seed(self, seed: int, epoch: int) -> None:
        """What draws from numbers of its own: generators of the loader and its samplers; samplers told the epoch."""
        sampler = getattr(self.loader, "sampler", None)
        batching = getattr(self.loader, "batch_sampler", None)
        parts = (self.loader, sampler, batching, getattr(self.loader, "dataset", None))
        for part in parts:
            if isinstance(generator := getattr(part, "generator", None), torch.Generator):
                generator.manual_seed(seed)
            if epoch >= 0 and callable(tell := getattr(part, "set_epoch", None)):
                tell(epoch)


class Numbers:
    """Random numbers of torch, NumPy and Python that belong to one stream of batches and to nobody else."""

    def __init__(self, seed: int) -> None:
        self.seed, outside = seed, _states()
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  what users' datasets draw from
        self.inside = _states()
        _restore(outside)

    def __enter__(self) -> None:
        self.outside = _states()
        _restore(self.inside)

    def __exit__(self, *_: object) -> None:
        self.inside = _states()
        _restore(self.outside)


def _states() -> tuple[Any, Any, Any]:
    return torch.default_generator.get_state(), np.random.get_state(), random.getstate()  # noqa: NPY002


def _restore(states: tuple[Any, Any, Any]) -> None:
    torch.default_generator.set_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    random.setstate(states[2])
