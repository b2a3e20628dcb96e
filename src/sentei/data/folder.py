"""Folders of images: PATH/train/CLASS/*.jpg and PATH/val or PATH/test likewise."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from sentei.data.dataset import Data, describe
from sentei.data.samples import NormalisedSplit, decoded, divided
from sentei.data.sources import Statistics
from sentei.data.splits import Augment, stratified_split
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
) -> Data:
    """Read the folders' names; images are decoded when they are asked for.

    With both val/ and test/ and no ``val``, val/ is the validation split; otherwise whichever exists (test/
    first) is the test set and the validation split is carved from train/.
    """
    size = size or 224
    train = _scan(path / "train")
    folders = {name: _scan(path / name) for name in ("test", "val") if (path / name).is_dir()}
    for name, folder in folders.items():
        _same_classes(path, name, train.classes, folder.classes)
    labels = np.array([label for _, label in train.samples])
    parts = divided(
        train.samples,
        {name: folder.samples for name, folder in folders.items()},
        val,
        partial(stratified_split, labels, seed=seed),
        f"{path} has neither val/ nor test/. Expected {path}/val/CLASS/image files beside train/.",
    )
    device = torch.device(device)
    splits = {
        name: FolderSplit(samples, size, device, statistics, data_workers(workers), path)
        for name, samples in parts.items()
    }
    shape = (3, size, size)
    described = describe(ref, splits, len(train.classes), shape, seed, *statistics)
    return Data(
        ref, splits["train"], splits["val"], splits["test"], len(train.classes), shape, device, described,
        class_names=tuple(train.classes),
    )  # fmt: skip


def _scan(path: Path) -> ImageFolder:
    if not path.is_dir():
        raise DataError(f"There is no folder {path}. Expected {path}/CLASS/image files, one folder for each class.")
    try:
        return ImageFolder(path)
    except (FileNotFoundError, OSError) as error:
        raise DataError(f"{path} is not a folder of one folder of images for each class: {error}") from error


def _same_classes(path: Path, name: str, train: list[str], other: list[str]) -> None:
    absent, extra = sorted(set(train) - set(other)), sorted(set(other) - set(train))
    if absent or extra:
        parts = [f"{name}/ lacks {', '.join(absent[:5])}"] * bool(absent)
        parts += [f"train/ lacks {', '.join(extra[:5])}"] * bool(extra)
        raise DataError(f"The classes of {path}/train and {path}/{name} differ: {'; '.join(parts)}.")


class FolderSplit(NormalisedSplit[Sample]):
    """Images decoded and resized by worker processes, normalised on the device."""

    def __init__(
        self,
        samples: list[Sample],
        size: int,
        device: torch.device,
        statistics: Statistics,
        workers: int,
        root: Path,
    ) -> None:
        super().__init__(samples, device, statistics, workers, root)
        self.size = size

    @staticmethod
    def read(sample: Sample) -> tuple[Image, int]:
        path, label = sample
        return decoded(path), label

    def change(self, augment: Augment | None) -> v2.Transform:
        return _plain_transform(self.size) if augment is None else _training_transform(self.size, augment)

    @staticmethod
    def collate(elements: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        return torch.stack([image for image, _ in elements]), torch.tensor([label for _, label in elements])

    def told(self, sample: Sample) -> str:
        return f"{self.stamp(sample[0])} {sample[1]}"


def _training_transform(size: int, augment: Augment) -> v2.Transform:
    flip = [v2.RandomHorizontalFlip()] if augment.flip else []
    return v2.Compose([v2.RandomResizedCrop(size, scale=augment.scale, antialias=True), *flip, v2.PILToTensor()])


def _plain_transform(size: int) -> v2.Transform:
    """The centre of the image after resizing its shorter side to 8/7 of the crop: 256 for 224."""
    return v2.Compose([v2.Resize(round(size * 8 / 7), antialias=True), v2.CenterCrop(size), v2.PILToTensor()])
