"""Images in tar shards, as webdataset writes them: KEY.jpg and KEY.cls side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from sentei.data.dataset import Data, describe
from sentei.data.folder import ClassSplit
from sentei.data.rows import Rows
from sentei.data.samples import decoded, divided_by_class
from sentei.data.shardahead import fetched_ahead
from sentei.data.shardfiles import ShardFiles
from sentei.data.shardindex import indices_of
from sentei.data.shardlist import HOW, is_remote, shards_of
from sentei.data.sources import Statistics
from sentei.data.splits import content_of, training_batches
from sentei.data.subset import ALL, Subset
from sentei.errors import DataError
from sentei.threads import data_workers

WINDOW = 32
"""Shards that are read side by side in training: their samples are mixed."""


@dataclass(frozen=True)
class Place:
    """An image in a shard."""

    files: ShardFiles
    shard: int
    begin: int
    length: int

    def __str__(self) -> str:
        return self.files.member(self.shard, self.begin)


Sample = tuple[Place, int]


@dataclass(frozen=True)
class Shards(Rows[Sample]):
    """The images of some shards, in the order of the shards and in that of each."""

    files: ShardFiles
    places: Tensor
    """Number of the shard, begin and length of each image, int64 N,3."""

    @classmethod
    def of(cls, sources: Sequence[str], workers: int, told: str) -> Shards:
        """Index the shards; see `indices_of`."""
        files = ShardFiles(tuple(sources))
        found = indices_of(files, workers, told)
        counts = torch.tensor([len(index.rows) for index in found])
        numbers = torch.arange(len(found)).repeat_interleave(counts)
        rows = torch.cat([index.rows for index in found])
        files = replace(files, sizes=tuple(index.size for index in found))
        return cls(rows[:, 2].clone(), files, torch.column_stack([numbers, rows[:, :2]]))

    def row(self, index: int) -> Sample:
        return Place(self.files, *self.places[index].tolist()), int(self.labels[index])

    def take(self, indices: Tensor) -> Shards:
        return replace(self, labels=self.labels[indices], places=self.places[indices])


def load_shards(
    ref: str,
    pattern: str,
    *,
    val: int | float | None,
    seed: int,
    size: int | None,
    device: str | torch.device,
    statistics: Statistics,
    workers: int | None = None,
    subset: Subset = ALL,
) -> Data:
    """Index the shards of a pattern, a folder or a list (see `sentei.data.shardlist`); images are read on demand.

    The splits are those of an image folder: with both val and test and no ``val``, val is the validation split,
    otherwise it is carved from train. A sample is an image (jpg, jpeg, png, webp) and a class number from 0, in KEY.cls
    or in KEY.json. Classes are named by the lines of classes.txt beside the shards; without it there are as many as the
    largest number in train says.

    Samples are read at their places, so that an epoch is a plain order of them: every sample once, the same ones with
    any number of workers and processes, and nothing is read for what is left out. Shards that a command or an address
    gives (``pipe:...``, ``https://...``) are fetched into a cache for it; see `ShardFiles`.
    """
    size = size or 224
    listed = shards_of(pattern)
    workers = data_workers(workers)
    found = {name: Shards.of(sources, workers, name) for name, sources in listed.sources.items()}
    names = listed.names or tuple(map(str, range(int(found["train"].labels.max()) + 1)))
    for name, rows in found.items():
        if (most := int(rows.labels.max())) >= len(names):
            raise DataError(f"{ref}: {name} has label {most}, but there are {len(names)} classes, from 0.")
    classes = subset.classes_of(ref, names, seed)
    missing = (
        f"{ref} names shards for training only, neither val nor test. The pattern needs the word train, in whose place "
        f"the others are looked for. {HOW}."
    )
    parts = divided_by_class(found.pop("train"), found, classes, subset, val, seed, missing)
    where = torch.device(device)
    splits = {name: ShardSplit(rows, size, where, statistics, workers, Path()) for name, rows in parts.items()}
    shape = (3, size, size)
    described = describe(ref, splits, len(classes), shape, seed, *statistics)
    return Data(
        ref, splits["train"], splits["val"], splits["test"], len(classes), shape, where, described,
        class_names=tuple(names[i] for i in classes) if listed.names else None,
    )  # fmt: skip


class ShardSplit(ClassSplit[Sample]):
    """Images of shards."""

    samples: Shards

    def order(self, batch_size: int, train: bool, limit: int | None, generator: torch.Generator) -> Tensor:
        """In training the shards in random order, each with those next to it mixed."""
        if not train:
            return super().order(batch_size, train, limit, generator)
        count = training_batches(min(limit or len(self), len(self)), batch_size) * batch_size
        return mixed(self.samples.places[:, 0], WINDOW, generator)[:count]

    def ahead(self, order: Tensor) -> AbstractContextManager[Callable[[int], None]]:
        if not any(map(is_remote, self.samples.files.sources)):
            return super().ahead(order)
        return fetched_ahead(self.samples.files, self.samples.places[order, 0].numpy())

    @staticmethod
    def read(sample: Sample) -> tuple[Image, int]:
        place, label = sample
        return decoded(place, raw=place.files.read(place.shard, place.begin, place.length)), label

    def told(self, sample: Sample) -> str:
        place, label = sample
        return f"{place.shard} {place.begin} {place.length} {label}"

    def content(self) -> str:
        """Of each image's shard, place, length and label: no image is read for it."""
        return content_of(self.samples.places, self.samples.labels, *self.constants())


def mixed(shards: Tensor, window: int, generator: torch.Generator) -> Tensor:
    """An order of samples, given the shard of each: shards come in random order, and so many of them at a time.

    >>> mixed(torch.tensor([0, 0, 1, 1, 2, 2]), 1, torch.Generator().manual_seed(1)).tolist()
    [2, 3, 4, 5, 1, 0]

    Each sample gets a place at random within the next `window` shards from where its own begins; the order is that of
    the places. Where there are no more shards than that, it is any order of all samples.
    """
    numbers, which, counts = shards.unique(return_inverse=True, return_counts=True)
    if len(numbers) <= window:
        return torch.randperm(len(shards), generator=generator)
    turns = torch.randperm(len(numbers), generator=generator)
    begins = torch.empty(len(numbers), dtype=torch.float64)
    begins[turns] = (counts[turns].cumsum(0) - counts[turns]).double()
    span = window * len(shards) / len(numbers)
    return (begins[which] + span * torch.rand(len(shards), generator=generator, dtype=torch.float64)).argsort()
