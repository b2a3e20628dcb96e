"""Images held in memory on the device, and their augmentation in vectorised batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sentei.errors import DataError

Batches = Iterator[Any]


@dataclass(frozen=True)
class Augment:
    """What training does to the images; evaluation never does.

    >>> Augment(flip=True, crop=4)
    Augment(flip=True, crop=4, cutout=0, scale=(0.35, 1.0))
    """

    flip: bool = False
    """Mirror half of the images in one epoch and the other half in the next, so that two show both sides."""
    crop: int = 0
    """Shift by up to this many pixels in each direction, filling with black. Images in memory only."""
    cutout: int = 0
    """Side in pixels of a square set to the mean colour (DeVries and Taylor 2017, arXiv 1708.04552)."""
    scale: tuple[float, float] = (0.35, 1.0)
    """Range of the area that a random resized crop covers. Image files only."""


@dataclass(frozen=True)
class Part:
    """One process's share of every batch: the ``index``-th of ``of``.

    >>> [Part(i, 3).piece(8) for i in range(3)]
    [slice(0, 3, None), slice(3, 6, None), slice(6, 8, None)]

    Raises DataError for an index that is not below ``of``.
    """

    index: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.of:
            raise DataError(f"Part({self.index}, {self.of}): expected an index from 0 to below the number of parts.")

    def piece(self, count: int) -> slice:
        """Its piece of a global batch, as `torch.tensor_split` cuts; the whole where not every part would get one."""
        if count < self.of:
            return slice(0, count)
        each, more = divmod(count, self.of)
        first = self.index * each + min(self.index, more)
        return slice(first, first + each + (self.index < more))

    def share(self, order: Tensor) -> Tensor:
        """Its samples of an order that the parts divide among them."""
        return order[self.index :: self.of]


WHOLE = Part()
"""All of every batch: one process alone."""


def content_of(*parts: Tensor | str | Iterable[str]) -> str:
    """Checksum of tensors and texts, 16 hex digits; the texts of an iterable count as one text."""
    sha = hashlib.sha256()
    for part in parts:
        if not isinstance(part, Tensor):
            for text in (part,) if isinstance(part, str) else part:
                sha.update(text.encode())
        else:
            whole = part.detach().cpu().contiguous()
            sha.update(f"{whole.dtype} {tuple(whole.shape)}".encode())
            sha.update(whole.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]


class Split(Protocol):
    """One part of a data set: a number of images, and batches of them."""

    augment: Augment
    """What `batches` does in training unless told otherwise."""

    def __len__(self) -> int: ...

    def steps(self, batch_size: int, limit: int | None = None) -> int:
        """Training batches of an epoch."""
        ...

    def content(self) -> str:
        """A checksum of what it holds, whatever it is called and wherever it lies."""
        ...

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
        """Yield batches on the device: images (float32 N,C,H,W, normalised, channels last) and int64 labels N here.

        With ``train`` the order and the augmentation follow from (seed, epoch) alone and an incomplete last
        batch is dropped; without it every image comes once, in order. ``limit`` takes only so many images:
        the first of the epoch's order in training, evenly spaced ones otherwise. ``augment`` replaces the
        data set's own augmentation.

        ``part`` is for several processes. In training all go through the same batches of ``batch_size`` images, the
        same ones however many processes there are, and each yields its piece of every one: all yield equally many.
        A batch of fewer images than processes is yielded whole by each. Without ``train`` each yields images of its
        own, together all of them.

        ``start`` leaves out so many batches at the beginning (of those that this process would yield); those that
        follow are what they would have been.
        """
        ...


def epoch_order(size: int, batch_size: int, train: bool, limit: int | None, generator: torch.Generator) -> Tensor:
    """Indices of the images an epoch shows, in order; of those of training, what fills whole batches."""
    count = size if limit is None else min(limit, size)
    if train:
        return torch.randperm(size, generator=generator)[: training_batches(count, batch_size) * batch_size]
    return torch.arange(size) if count == size else torch.linspace(0, size - 1, count).round().long()


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Random numbers that depend on the seed and the epoch alone, so that a resumed run draws the same."""
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch * 7_919 + 17) % 2**63)


def training_batches(count: int, batch_size: int) -> int:
    """Number of training batches: complete ones only, unless there are fewer images than one batch holds."""
    return max(count // batch_size, min(count, 1))


def epoch_steps(size: int, batch_size: int, limit: int | None) -> int:
    return training_batches(min(limit or size, size), batch_size)


def stratified_split(labels: np.ndarray[Any, Any], val: int | float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the kept and of the held-out images, each in rising order, classes in equal proportion."""
    from sklearn.model_selection import train_test_split

    size, classes = len(labels), len(np.unique(labels))
    count = round(val * size) if isinstance(val, float) and val < 1 else int(val)
    if val == 0:
        return torch.arange(size), torch.arange(0)
    if not classes <= count <= size - classes:
        raise DataError(
            f"A validation split of {val} does not fit {size} training images of {classes} classes. "
            f"Give a fraction below 1 or a number from {classes} to {size - classes}; 0 means none."
        )
    try:
        kept, held = train_test_split(np.arange(size), test_size=count, stratify=labels, random_state=seed)
    except ValueError as error:
        raise DataError(f"The training images cannot be split by class: {error}") from error
    return torch.from_numpy(np.sort(kept)), torch.from_numpy(np.sort(held))


def random_split(size: int, val: int | float, seed: int) -> tuple[Tensor, Tensor]:
    """As `stratified_split`, for samples without a class of their own."""
    count = round(val * size) if isinstance(val, float) and val < 1 else int(val)
    if val == 0:
        return torch.arange(size), torch.arange(0)
    if not 1 <= count < size:
        raise DataError(
            f"A validation split of {val} does not fit {size} training images. Give a fraction below 1 or a number "
            f"from 1 to {size - 1}; 0 means none."
        )
    order = torch.randperm(size, generator=epoch_generator(seed, -1))
    return order[count:].sort().values, order[:count].sort().values


class TensorSplit:
    """Images in memory on the device: uint8 or float, stored N,H,W,C so that a gather yields channels last.

    >>> images = torch.zeros(8, 6, 6, 3, dtype=torch.uint8)
    >>> split = TensorSplit(images, torch.arange(8), (0.5,) * 3, (0.5,) * 3, Augment())
    >>> [tuple(x.shape) for x, y in split.batches(5)]
    [(5, 3, 6, 6), (3, 3, 6, 6)]
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        augment: Augment,
    ) -> None:
        self.images, self.labels, self.augment = images, labels, augment
        # uint8 pixels count as value / 255; folding that into the affine map costs nothing.
        unit = 1 / 255 if images.dtype == torch.uint8 else 1.0
        self.mul = unit / torch.tensor(std, device=images.device)
        self.add = -torch.tensor(mean, device=images.device) / torch.tensor(std, device=images.device)

    def __len__(self) -> int:
        return len(self.images)

    def steps(self, batch_size: int, limit: int | None = None) -> int:
        return epoch_steps(len(self), batch_size, limit)

    def content(self) -> str:
        return content_of(self.images, self.labels, self.mul, self.add)

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
        generator = epoch_generator(seed, epoch)
        order = epoch_order(len(self), batch_size, train, limit, generator)
        if not train:
            for index in _cut(part.share(order), batch_size)[start:]:
                yield self._batch(index, self._normalised(self.images[index.to(self.images.device)]))
            return
        # One mirror bit an image for the whole run, inverted every other epoch.
        mirrored = torch.rand(len(self), generator=epoch_generator(seed, -1)) < 0.5
        mirrored = mirrored ^ bool(epoch % 2)
        augment = augment or self.augment
        for number, whole in enumerate(_cut(order, batch_size)):
            drawn = _drawn(len(whole), augment, self.images.shape[1:3], generator)
            if number >= start:  # what is left out has drawn its random numbers all the same
                piece = part.piece(len(whole))
                index, drawn = whole[piece], tuple(values[:, piece] for values in drawn)
                yield self._batch(index, self._augmented(index, mirrored[index], augment, *drawn))

    def _batch(self, index: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.permute(0, 3, 1, 2), self.labels[index.to(self.labels.device)]

    def _normalised(self, pixels: Tensor) -> Tensor:
        return torch.addcmul(self.add, pixels.float(), self.mul)

    def _augmented(
        self, index: Tensor, mirrored: Tensor, augment: Augment, shifts: Tensor, corners: Tensor | None = None
    ) -> Tensor:
        """Crop, flip and fetch in a single gather from the stored images: N,H,W,C."""
        device, (height, width) = self.images.device, self.images.shape[1:3]
        dy, dx = shifts
        rows, cols = torch.arange(height) + dy, (torch.arange(width) + dx)
        if augment.flip:
            cols = torch.where(mirrored[:, None], width - 1 - cols, cols)
        rows, cols, index = rows.to(device), cols.to(device), index.to(device)
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((cols >= 0) & (cols < width))[:, None, :]
        rows, cols = rows.clamp(0, height - 1), cols.clamp(0, width - 1)
        pixels = self.images[index[:, None, None], rows[:, :, None], cols[:, None, :]]
        x = self._normalised(pixels if augment.crop == 0 else pixels * inside[..., None])
        return x if corners is None else _cut_out(x, augment.cutout, corners)


def _cut(order: Tensor, batch_size: int) -> Sequence[Tensor]:
    return order.split(batch_size) if len(order) else ()


def _drawn(size: int, augment: Augment, image: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Random numbers of a whole batch, 2,size,1 each: shifts down and right and, with a cutout, its corner."""
    pad, side = augment.crop, augment.cutout
    shifts = torch.randint(-pad, pad + 1, (2, size, 1), generator=generator)
    if not side:
        return (shifts,)
    corners = [torch.randint(0, length, (size, 1), generator=generator) - side // 2 for length in image]
    return shifts, torch.stack(corners)


def _cut_out(x: Tensor, side: int, corners: Tensor) -> Tensor:
    """Zero (the mean colour once normalised) a square with the given corners; it may reach over the edge."""
    height, width = x.shape[1:3]
    top, left = corners
    row, col = torch.arange(height), torch.arange(width)
    hidden = ((row >= top) & (row < top + side))[:, :, None] & ((col >= left) & (col < left + side))[:, None, :]
    return x.masked_fill(hidden[..., None].to(x.device), 0.0)
