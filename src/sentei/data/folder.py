"""Folders of images: PATH/train/CLASS/*.jpg and PATH/val or PATH/test likewise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from sentei.data.dataset import Data, describe
from sentei.data.sources import Statistics
from sentei.data.splits import (
    Augment,
    Batches,
    content_of,
    epoch_generator,
    epoch_order,
    epoch_steps,
    stratified_split,
    training_batches,
)
from sentei.errors import DataError
from sentei.threads import data_workers

Sample = tuple[Tensor | str, int]


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
    if not folders:
        raise DataError(f"{path} has neither val/ nor test/. Expected {path}/val/CLASS/image files beside train/.")
    for name, folder in folders.items():
        _same_classes(path, name, train.classes, folder.classes)
    test = next(iter(folders.values()))
    kept, held = list(train.samples), list(folders["val"].samples) if "val" in folders else []
    if val is not None or len(folders) == 1:
        wanted = 0.1 if val is None else val
        keep, hold = stratified_split(np.array([label for _, label in train.samples]), wanted, seed)
        kept, held = [train.samples[i] for i in keep.tolist()], [train.samples[i] for i in hold.tolist()]
    device = torch.device(device)
    splits = {
        name: FolderSplit(samples, size, device, statistics, data_workers(workers), path)
        for name, samples in (("train", kept), ("val", held), ("test", list(test.samples)))
    }
    shape = (3, size, size)
    described = describe(ref, splits, len(train.classes), shape, seed, *statistics)
    return Data(ref, splits["train"], splits["val"], splits["test"], len(train.classes), shape, device, described)


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


class FolderSplit:
    """Images decoded and resized by worker processes, normalised on the device."""

    def __init__(
        self,
        samples: list[tuple[str, int]],
        size: int,
        device: torch.device,
        statistics: Statistics,
        workers: int,
        root: Path,
    ) -> None:
        self.samples, self.size, self.device, self.workers, self.root = samples, size, device, workers, root
        self.augment = Augment(flip=True)
        mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in statistics)
        self.mul, self.add = 1 / (255 * std), -mean / std

    def __len__(self) -> int:
        return len(self.samples)

    def steps(self, batch_size: int, limit: int | None = None) -> int:
        return epoch_steps(len(self), batch_size, limit)

    def content(self) -> str:
        """Of the images' names below the root, their sizes in bytes and classes: no image is read for it."""
        listed = "\n".join(f"{Path(p).relative_to(self.root)} {os.path.getsize(p)} {y}" for p, y in self.samples)
        return content_of(listed, self.mul, self.add)

    def batches(
        self,
        batch_size: int,
        *,
        train: bool = False,
        seed: int = 0,
        epoch: int = 0,
        limit: int | None = None,
        augment: Augment | None = None,
    ) -> Batches:
        generator = epoch_generator(seed, epoch)
        order = epoch_order(len(self), train, limit, generator)
        if train:
            order = order[: training_batches(len(order), batch_size) * batch_size]
        transform = _training_transform(self.size, augment or self.augment) if train else _plain_transform(self.size)
        loader = DataLoader(
            _Images(self.samples, transform, (seed * 1_000_003 + epoch) if train else None),
            batch_size,
            sampler=order.tolist(),
            num_workers=min(self.workers, -(-len(order) // batch_size)),
            collate_fn=_collate,
            generator=generator,  # else the loader draws from, and so disturbs, the global one
            pin_memory=self.device.type == "cuda",
        )
        for pixels, labels in loader:
            if isinstance(pixels, str):
                raise DataError(pixels)
            x = pixels.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            yield torch.addcmul(self.add, x.float(), self.mul), labels.to(self.device, non_blocking=True)


class _Images(Dataset[Sample]):
    """An image that cannot be read comes back as the error's text, so that it leaves the worker unharmed."""

    def __init__(self, samples: list[tuple[str, int]], transform: v2.Transform, seed: int | None) -> None:
        self.samples, self.transform, self.seed = samples, transform, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        from torchvision.datasets.folder import pil_loader

        path, label = self.samples[index]
        try:
            image = pil_loader(path)
        except Exception as error:  # decoders raise anything on damaged files
            return (
                f"{path} cannot be read as an image ({type(error).__name__}: {error}). Replace or remove it.",
                label,
            )
        if self.seed is None:
            return self.transform(image), label
        # Seeded by image, not by worker: the same pictures with any number of workers.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed((self.seed * 1_000_003 + index) % 2**63)
            return self.transform(image), label


def _collate(samples: list[Sample]) -> tuple[Any, Tensor]:
    broken = next((image for image, _ in samples if isinstance(image, str)), None)
    labels = torch.tensor([label for _, label in samples])
    return (broken, labels) if broken else (torch.stack([image for image, _ in samples]), labels)  # type: ignore[misc]


def _training_transform(size: int, augment: Augment) -> v2.Transform:
    flip = [v2.RandomHorizontalFlip()] if augment.flip else []
    return v2.Compose([v2.RandomResizedCrop(size, scale=augment.scale, antialias=True), *flip, v2.PILToTensor()])


def _plain_transform(size: int) -> v2.Transform:
    """The centre of the image after resizing its shorter side to 8/7 of the crop: 256 for 224."""
    return v2.Compose([v2.Resize(round(size * 8 / 7), antialias=True), v2.CenterCrop(size), v2.PILToTensor()])
