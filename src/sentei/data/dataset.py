"""A data set in three splits, and what makes it this one and no other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from sentei.data.loaders import LoaderSplit
from sentei.data.splits import Split, content_of

IGNORE = 255
"""Mask value of pixels without a class."""


@dataclass(frozen=True)
class Data:
    """A data set in three splits; ``val`` is carved from train, ``test`` is for the final number."""

    name: str
    train: Split
    val: Split
    test: Split
    num_classes: int | None = None
    """Of detection without the background, which torchvision's detectors count as well."""
    input_shape: tuple[int, int, int] | None = None
    """Channels, height, width of what the model receives, where that is images of one size."""
    device: torch.device = torch.device("cpu")
    description: dict[str, Any] = field(default_factory=dict)
    """Everything resolved, as plain values for a config file; "task" names what the data are for, if not classes."""
    example: Any = None
    """What the model is called with, for tracing: tensor, tuple or dict. Unless given, an image of `input_shape`, or
    what the task makes of the first training batch."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes in the order of their numbers, where the data have them."""

    @classmethod
    def of(
        cls,
        train: Iterable[Any],
        val: Iterable[Any] = (),
        test: Iterable[Any] = (),
        *,
        example: Any = None,
        num_classes: int | None = None,
        device: str | torch.device = "cpu",
        name: str = "own data",
    ) -> Data:
        """Your own batches: DataLoaders, lists, anything with a length that can be iterated again and again.

        >>> data = sentei.Data.of(train=train_loader, val=val_loader, test=test_loader)  # doctest: +SKIP
        >>> sentei.prune(model, data, task=Mine(), method="taylor")  # doctest: +SKIP

        Batches may be of any nesting, and are moved to `device`; the task says what is in them. Their size is the
        loader's own: `batch_size` and augmentation of a recipe have no effect. While a batch is fetched, the random
        numbers of torch, NumPy and Python follow from (seed, epoch), as do a loader's own generator and its sampler's
        `set_epoch`: the same seed gives the same batches, and a resumed run ends in the same bits. Where two first
        batches of the same seed differ all the same, `notes` says so.

        Raises DataError for what has no length or yields nothing in training.
        """
        where = torch.device(device)
        splits = {n: LoaderSplit(x, where, n) for n, x in (("train", train), ("val", val), ("test", test))}
        splits["train"].refuse_empty()
        return cls(name, splits["train"], splits["val"], splits["test"], num_classes, None, where, {}, example)

    def on(self, device: str | torch.device) -> Data:
        """The same batches of your own on another device."""
        where = torch.device(device)
        splits = (s.on(where) if isinstance(s, LoaderSplit) else s for s in (self.train, self.val, self.test))
        train, val, test = splits
        return replace(self, device=where, train=train, val=val, test=test)

    @property
    def notes(self) -> list[str]:
        """What keeps a run on these data from being repeated to the bit."""
        note = self.train.note if isinstance(self.train, LoaderSplit) else None
        return [] if note is None else [note]

    def epoch_images(self, batch_size: int, limit: int | None = None) -> int:
        """Training samples of an epoch: those of whole batches, unless there are fewer than one batch holds.

        >>> data = Data.of([torch.zeros(4, 1)] * 3)
        >>> data.epoch_images(64), data.epoch_images(64, limit=5)
        (12, 8)
        """
        if isinstance(self.train, LoaderSplit) and limit is None:
            return len(self.train)
        return min(self.train.steps(batch_size, limit) * self.batch_images(batch_size), len(self.train))

    def batch_images(self, batch_size: int) -> int:
        """Training samples of a batch: loaders of your own decide that themselves."""
        return self.train.each if isinstance(self.train, LoaderSplit) else batch_size

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The description with a checksum of the content, and without names and places: the same for the same data."""
        splits = (self.train, self.val, self.test)
        content = content_of(*(split.content() for split in splits if hasattr(split, "content")))
        sizes = dict(zip(("train", "val", "test"), map(len, splits), strict=True))
        shape = None if self.input_shape is None else list(self.input_shape)
        known = {"classes": self.num_classes, "input_shape": shape, **sizes}
        return {**self.description, **known, "data": kind_of(self.name), "content": content}


def kind_of(ref: str) -> str:
    """What a reference says apart from where the data lie.

    >>> kind_of("digits"), kind_of("imagefolder:/home/me/photos"), kind_of("coco:cells"), kind_of("mine.py:images")
    ('digits', 'imagefolder', 'coco', 'file.py')
    """
    return "file.py" if ".py:" in ref else ref.partition(":")[0]


def describe(
    ref: str,
    splits: Any,
    classes: int,
    shape: tuple[int, int, int],
    seed: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> dict[str, Any]:
    sizes = {name: len(split) for name, split in splits.items()}
    stats = {"mean": [round(v, 6) for v in mean], "std": [round(v, 6) for v in std]}
    return {"data": ref, **sizes, "classes": classes, "input_shape": list(shape), "split_seed": seed, **stats}
