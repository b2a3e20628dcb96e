"""Samples that lie in files: decoded and augmented by worker processes or from memory, finished on the device."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from sentei.data.rows import Rows
from sentei.data.sources import Statistics
from sentei.data.splits import (
    WHOLE,
    Augment,
    Batches,
    Part,
    content_of,
    epoch_generator,
    epoch_order,
    epoch_steps,
    stratified_split,
)
from sentei.data.subset import R, Subset
from sentei.errors import DataError
from sentei.threads import data_workers

S = TypeVar("S")
Change = Callable[[Any], Any]

KEPT = 256 * 2**20
"""Bytes of decoded pixels, over all splits, that are kept in memory instead of being decoded in each epoch."""
PIXELS = 2**21
"""Pixels of one batch in evaluation, where every pixel has scores of its own."""


class SampleSplit(ABC, Generic[S]):
    """A split whose samples lie in files, whatever is in them. What is left to a kind of data is abstract below.

    A sample is what `read` gets: paths and labels. `read` decodes it, `change` augments it or brings it to its size,
    `collate` makes a batch of several, all in worker processes, so that they must be picklable; `finish` brings a batch
    to the device. The order and the pictures of an epoch follow from (seed, epoch, place in `samples`) alone, with any
    number of workers. DataError names a file that cannot be read.

    Args:
        samples: one for each image, in order.
        device: where batches appear.
        workers: processes that decode; 0 is none.
        root: the data set's folder; `content` does not depend on where it lies.
        augment: what training does unless told otherwise.
        keep: hold decoded samples in memory. Sensible without workers only, which start anew each epoch.
        most: samples in one batch of evaluation, whatever larger number is asked for.
    """

    def __init__(
        self,
        samples: Sequence[S],
        device: torch.device,
        workers: int,
        root: Path,
        augment: Augment,
        keep: bool = False,
        most: int | None = None,
    ) -> None:
        self.samples, self.device, self.workers, self.root = samples, device, workers, root
        self.augment, self.most = augment, most
        self.kept: dict[int, Any] | None = {} if keep else None

    # -- what is left to a kind of data

    @staticmethod
    @abstractmethod
    def read(sample: S) -> Any:
        """The decoded sample. DataError for what cannot be read (see `decoded`)."""

    @abstractmethod
    def change(self, augment: Augment | None) -> Change:
        """What makes an element of a batch of a decoded sample; None is evaluation."""

    @staticmethod
    @abstractmethod
    def collate(elements: list[Any]) -> Any:
        """A batch."""

    @abstractmethod
    def finish(self, batch: Any) -> Any:
        """The batch on the device, as models and tasks want it."""

    @abstractmethod
    def told(self, sample: S) -> str:
        """A line that tells the sample from others: its files by `stamp`, and its labels. Nothing is decoded for it."""

    def constants(self) -> Sequence[Tensor]:
        """What else decides about the content."""
        return ()

    # -- what they share

    def __len__(self) -> int:
        return len(self.samples)

    def steps(self, batch_size: int, limit: int | None = None) -> int:
        return epoch_steps(len(self), batch_size, limit)

    def content(self) -> str:
        """Of the files' names below the root, their sizes in bytes and labels: no image is read for it."""
        told = ("\n" * (i > 0) + self.told(sample) for i, sample in enumerate(self.samples))
        return content_of(told, *self.constants())

    def stamp(self, path: str) -> str:
        return f"{Path(path).relative_to(self.root)} {os.path.getsize(path)}"

    def order(self, batch_size: int, train: bool, limit: int | None, generator: torch.Generator) -> Tensor:
        """Indices of the samples of an epoch; see `epoch_order`."""
        return epoch_order(len(self), batch_size, train, limit, generator)

    def ahead(self, order: Tensor) -> AbstractContextManager[Callable[[int], None]]:
        """Get ready what some samples will need, in their order; the function hears how many were read by now."""
        return nullcontext(lambda read: None)

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
        """See `Split.batches`; nothing is decoded for other parts, nor for what is left out."""
        generator = epoch_generator(seed, epoch)
        order = self.order(batch_size, train, limit, generator)
        if not train and self.most is not None:
            batch_size = min(batch_size, self.most)
        change = self.change((augment or self.augment) if train else None)
        pieces = (
            Pieces(order, batch_size, part, start) if train else Pieces(part.share(order), batch_size, WHOLE, start)
        )
        loader = DataLoader(
            _Samples(self.samples, self.read, change, (seed * 1_000_003 + epoch) if train else None, self.kept),
            batch_sampler=pieces,
            num_workers=min(self.workers, len(pieces)),
            collate_fn=_Collate(self.collate),
            generator=generator,  # else the loader draws from, and so disturbs, the global one
            pin_memory=self.device.type == "cuda",
        )
        batches = iter(loader)  # this forks the workers, before there is any thread
        with self.ahead(pieces.order[start * batch_size :]) as read:
            for number, batch in enumerate(batches, 1):
                if isinstance(batch, Broken):
                    raise DataError(batch.text)
                read(number * batch_size)
                yield self.finish(batch)


@dataclass(frozen=True)
class Pieces:
    """Indices of the samples of each batch: one part's piece of them, from one batch on."""

    order: Tensor
    batch_size: int
    part: Part
    start: int

    def __len__(self) -> int:
        return max(-(-len(self.order) // self.batch_size) - self.start, 0)

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(self.start, self.start + len(self)):
            batch = self.order[number * self.batch_size : (number + 1) * self.batch_size]
            yield batch[self.part.piece(len(batch))].tolist()


@dataclass(frozen=True)
class Broken:
    """Why a sample cannot be read; leaves the worker unharmed, which an exception does not."""

    text: str


class _Samples(Dataset[Any], Generic[S]):
    def __init__(
        self,
        samples: Sequence[S],
        read: Callable[[S], Any],
        change: Change,
        seed: int | None,
        kept: dict[int, Any] | None,
    ) -> None:
        self.samples, self.read, self.change, self.seed, self.kept = samples, read, change, seed, kept

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        try:
            sample = self._decoded(index)
        except DataError as error:
            return Broken(str(error))
        if self.seed is None:
            return self.change(sample)
        # Seeded by sample, not by worker: the same pictures with any number of workers.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed((self.seed * 1_000_003 + index) % 2**63)
            return self.change(sample)

    def _decoded(self, index: int) -> Any:
        if self.kept is None:
            return self.read(self.samples[index])
        if index not in self.kept:
            self.kept[index] = self.read(self.samples[index])
        return self.kept[index]


@dataclass(frozen=True)
class _Collate:
    collate: Callable[[list[Any]], Any]

    def __call__(self, elements: list[Any]) -> Any:
        return next((e for e in elements if isinstance(e, Broken)), None) or self.collate(elements)


# -- images


class Normalised:
    """Images 0..255 to the device, normalised there: float32, channels last.

    >>> white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    >>> round(Normalised(((0.5,) * 3, (0.5,) * 3), torch.device("cpu"))(white).max().item(), 3)
    1.0
    """

    def __init__(self, statistics: Statistics, device: torch.device) -> None:
        mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in statistics)
        self.device, self.mul, self.add = device, 1 / (255 * std), -mean / std

    def __call__(self, pixels: Tensor) -> Tensor:
        x = pixels.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        return torch.addcmul(self.add, x.float(), self.mul)


class NormalisedSplit(SampleSplit[S]):
    """Batches (images, labels): images normalised on the device, labels int64."""

    def __init__(
        self,
        samples: Sequence[S],
        device: torch.device,
        statistics: Statistics,
        workers: int,
        root: Path,
        keep: bool = False,
        most: int | None = None,
    ) -> None:
        super().__init__(samples, device, workers, root, Augment(flip=True), keep, most)
        self.normalised = Normalised(statistics, device)

    def finish(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.normalised(batch[0]), batch[1].to(self.device, non_blocking=True).long()

    def constants(self) -> Sequence[Tensor]:
        return self.normalised.mul, self.normalised.add


def decoded(path: object, mode: str | None = "RGB", raw: bytes | None = None) -> Image.Image:
    """An image file, decoded; its own mode where `mode` is None. DataError names a file that cannot be read.

    Its bytes may be given; `path` only names it then.
    """
    try:
        with open(str(path), "rb") if raw is None else BytesIO(raw) as file:
            image = Image.open(file)
            image.load()
            return image if mode is None else image.convert(mode)
    except Exception as error:  # decoders raise anything on damaged files
        raise unreadable(path, error) from error


def image_of(path: str) -> tv_tensors.Image:
    """An image file as uint8, 3,H,W, in the order of its file, which is the faster one to resize."""
    return tv_tensors.Image(torch.from_numpy(np.array(decoded(path))).permute(2, 0, 1))


def size_of(path: str) -> tuple[int, int]:
    """Height and width of an image file, from its first bytes."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception as error:
        raise unreadable(path, error) from error


def unreadable(path: object, error: Exception) -> DataError:
    reason = f"{type(error).__name__}: {error}"
    return DataError(f"{path} cannot be read as an image ({reason}). Replace or remove it.")


class Framed(v2.Transform):
    """An image, with the masks or boxes that belong to it, brought to a size; a part of it if `scale` says so.

    The part has the image's own proportions, its area is uniform in `scale`, its place anywhere: at a scale of 1 it is
    what evaluation shows. Without a size, images keep theirs.
    """

    def __init__(self, size: tuple[int, int] | None, scale: tuple[float, float] = (1.0, 1.0)) -> None:
        super().__init__()
        self.size, self.scale = size, scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        size = list(self.size or (height, width))
        if self.scale == (1.0, 1.0):
            return {"whole": True, "size": size, "as_is": size == [height, width]}
        low, high = self.scale
        share, down, right = torch.rand(3).tolist()
        side = (low + (high - low) * share) ** 0.5
        part = {"height": max(round(height * side), 1), "width": max(round(width * side), 1)}
        top, left = round(down * (height - part["height"])), round(right * (width - part["width"]))
        return {"whole": False, "size": size, "top": top, "left": left, **part}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not params["whole"]:
            place = (params[name] for name in ("top", "left", "height", "width"))
            return F.resized_crop(inpt, *place, size=params["size"], antialias=True)
        return inpt if params["as_is"] else F.resize(inpt, params["size"], antialias=True)


def framing(size: tuple[int, int] | None, augment: Augment | None) -> v2.Transform:
    """Random part and mirroring as `augment` says, None is neither; the size always."""
    if augment is None:
        return Framed(size)
    flip = [v2.RandomHorizontalFlip()] if augment.flip else []
    return v2.Compose([Framed(size, augment.scale), *flip])


# -- parts


def divided(
    train: Sequence[S],
    others: Mapping[str, Sequence[S]],
    val: int | float | None,
    hold: Callable[[int | float], tuple[Tensor, Tensor]],
    missing: str,
) -> dict[str, Any]:
    """Samples of train, val and test, from those in train/ and in val/ or test/ or both.

    With both and no `val`, val/ is the validation split; otherwise whichever exists (test/ first) is the test set, and
    `hold` tells which indices of train/ are kept and which are held out. `missing` is the error where
    there is neither.
    """
    if not others:
        raise DataError(missing)
    test = others["test"] if "test" in others else others["val"]
    if val is None and len(others) == 2:
        return {"train": train, "val": others["val"], "test": test}
    keep, held = hold(0.1 if val is None else val)
    return {"train": taken(train, keep), "val": taken(train, held), "test": test}


def divided_by_class(
    train: R,
    others: Mapping[str, R],
    classes: Sequence[int],
    subset: Subset,
    val: int | float | None,
    seed: int,
    missing: str,
) -> dict[str, Any]:
    """As `divided`, of some classes and as many of train/ as a subset keeps; what is held out is stratified."""
    train = subset.capped(train.only(classes), seed)
    hold = partial(stratified_split, train.labels.numpy(), seed=seed)
    return divided(train, {name: rows.only(classes) for name, rows in others.items()}, val, hold, missing)


def taken(samples: Sequence[S], indices: Tensor) -> Sequence[S]:
    return samples.take(indices) if isinstance(samples, Rows) else [samples[i] for i in indices.tolist()]


def storing(pixels: int, bytes_each: int, workers: int | None) -> tuple[bool, int]:
    """Whether to keep so many decoded pixels in memory, and how many workers to decode with: see `KEPT`.

    Workers that were asked for decode in any case.
    """
    keep = pixels * bytes_each <= KEPT and not workers
    return keep, 0 if keep else data_workers(workers)


def at_most(size: tuple[int, int]) -> int:
    """Images of a size in one batch of evaluation; see `PIXELS`."""
    return max(1, PIXELS // (size[0] * size[1]))
