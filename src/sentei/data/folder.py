"""Folders of images: PATH/train/CLASS/*.jpg and PATH/val or PATH/test likewise."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes
from torchvision.transforms import v2

from sentei.data.dataset import Data, describe
from sentei.data.names import Names
from sentei.data.rows import Rows
from sentei.data.samples import NormalisedSplit, S, decoded, divided_by_class
from sentei.data.sources import Statistics
from sentei.data.splits import Augment
from sentei.data.subset import ALL, Subset
from sentei.errors import DataError
from sentei.threads import data_workers

Sample = tuple[str, int]


def load_folder(
    ref: str,
    path: Path,
    *,
    val: int | float | None,
    seed: int,
    size: int | None,
    device: str | torch.device,
    statistics: Statistics,
    workers: int | None = None,
    subset: Subset = ALL,
) -> Data:
    """Read the folders' names; images are decoded when they are asked for.

    With both val/ and test/ and no ``val``, val/ is the validation split; otherwise whichever exists (test/
    first) is the test set and the validation split is carved from train/. ``subset`` keeps some of the classes, and of
    train/ at most so many images of each.
    """
    size = size or 224
    train = scanned(path / "train")
    folders = {name: scanned(path / name) for name in ("test", "val") if (path / name).is_dir()}
    for name, folder in folders.items():
        _same_classes(path, name, train.classes, folder.classes)
    classes = subset.classes_of(ref, train.classes, seed)
    missing = f"{path} has neither val/ nor test/. Expected {path}/val/CLASS/image files beside train/."
    parts = divided_by_class(train, folders, classes, subset, val, seed, missing)
    device = torch.device(device)
    splits = {
        name: FolderSplit(samples, size, device, statistics, data_workers(workers), path)
        for name, samples in parts.items()
    }
    shape, names = (3, size, size), tuple(train.classes[i] for i in classes)
    described = describe(ref, splits, len(names), shape, seed, *statistics)
    return Data(
        ref, splits["train"], splits["val"], splits["test"], len(names), shape, device, described, class_names=names,
    )  # fmt: skip


@dataclass(frozen=True)
class Folder(Rows[Sample]):
    """The image files below PATH/CLASS, class by class, in the order of their names."""

    path: str
    classes: tuple[str, ...]
    """Every class of the folder, also those of which no image is kept."""
    names: Names
    """Of the files, below the folders of their classes."""
    places: Tensor
    """Number of the class folder of each file, int32."""

    def row(self, index: int) -> Sample:
        place = self.classes[self.places.numpy()[index]]
        return f"{self.path}/{place}/{self.names[index]}", int(self.labels.numpy()[index])

    def take(self, indices: Tensor) -> Folder:
        columns = {name: getattr(self, name)[indices] for name in ("places", "labels")}
        return replace(self, names=self.names.take(indices), **columns)


def scanned(path: Path) -> Folder:
    """Every image file below PATH/CLASS/, in the order of torchvision's ImageFolder."""
    if not path.is_dir():
        raise DataError(f"There is no folder {path}. Expected {path}/CLASS/image files, one folder for each class.")
    try:
        classes = find_classes(str(path))[0]
    except (FileNotFoundError, OSError) as error:
        raise DataError(f"{path} is not a folder of one folder of images for each class: {error}") from error
    counts: list[int] = []
    names = Names.of(_counted((_files(path / name) for name in classes), counts))
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        raise DataError(
            f"{path} has no images of {', '.join(empty[:5])} ({len(empty)} classes in all). Expected files that end in "
            f"{', '.join(IMG_EXTENSIONS)}, or no such folder."
        )
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor(counts))
    return Folder(labels, str(path), tuple(classes), names, labels.int())


def _counted(groups: Iterable[Iterable[str]], counts: list[int]) -> Iterator[str]:
    """The texts of all groups, while it is noted how many each has."""
    for group in groups:
        counts.append(0)
        for text in group:
            counts[-1] += 1
            yield text


def _files(folder: Path) -> Iterator[str]:
    """Image files below a folder, relative to it."""
    for root, _, files in sorted(os.walk(folder, followlinks=True)):
        below = os.path.relpath(root, folder)
        for file in sorted(files):
            if file.lower().endswith(IMG_EXTENSIONS):
                yield file if below == os.curdir else f"{below}/{file}"


def _same_classes(path: Path, name: str, train: Sequence[str], other: Sequence[str]) -> None:
    absent, extra = sorted(set(train) - set(other)), sorted(set(other) - set(train))
    if absent or extra:
        parts = [f"{name}/ lacks {', '.join(absent[:5])}"] * bool(absent)
        parts += [f"train/ lacks {', '.join(extra[:5])}"] * bool(extra)
        raise DataError(f"The classes of {path}/train and {path}/{name} differ: {'; '.join(parts)}.")


class ClassSplit(NormalisedSplit[S]):
    """Images with a class each, decoded and resized by worker processes, normalised on the device."""

    def __init__(
        self,
        samples: Rows[S],
        size: int,
        device: torch.device,
        statistics: Statistics,
        workers: int,
        root: Path,
    ) -> None:
        super().__init__(samples, device, statistics, workers, root)
        self.size = size

    def change(self, augment: Augment | None) -> v2.Transform:
        return _plain_transform(self.size) if augment is None else _training_transform(self.size, augment)

    @staticmethod
    def collate(elements: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        return torch.stack([image for image, _ in elements]), torch.tensor([label for _, label in elements])


class FolderSplit(ClassSplit[Sample]):
    """Images of a folder."""

    @staticmethod
    def read(sample: Sample) -> tuple[Image, int]:
        path, label = sample
        return decoded(path), label

    def told(self, sample: Sample) -> str:
        path, label = sample
        return f"{path.removeprefix(f'{self.root}/')} {os.path.getsize(path)} {label}"


def _training_transform(size: int, augment: Augment) -> v2.Transform:
    flip = [v2.RandomHorizontalFlip()] if augment.flip else []
    return v2.Compose([v2.RandomResizedCrop(size, scale=augment.scale, antialias=True), *flip, v2.PILToTensor()])


def _plain_transform(size: int) -> v2.Transform:
    """The centre of the image after resizing its shorter side to 8/7 of the crop: 256 for 224."""
    return v2.Compose([v2.Resize(round(size * 8 / 7), antialias=True), v2.CenterCrop(size), v2.PILToTensor()])
