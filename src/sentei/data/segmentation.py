"""Images with a mask each: PATH/train/{images,masks}/NAME.png, and PATH/val or PATH/test likewise."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from sentei.data.dataset import IGNORE, Data, describe
from sentei.data.samples import (
    NormalisedSplit,
    at_most,
    decoded,
    divided,
    framing,
    image_of,
    size_of,
    storing,
)
from sentei.data.sources import Statistics
from sentei.data.splits import Augment, random_split
from sentei.errors import DataError

Sample = tuple[str, str]
Size = tuple[int, int]

INDICES = {"L": np.uint8, "P": np.uint8, "1": np.uint8, "I": np.int32, "I;16": np.int32}
"""Modes of images that hold one number a pixel. A palette's colours are not looked at."""


def load_segmentation(
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
    """Pair images and masks by name; they are decoded when they are asked for, and kept where they are few.

    The splits are those of an image folder: with both val/ and test/ and no ``val``, val/ is the validation split,
    otherwise it is carved from train/. Masks hold class numbers from 0, and 255 where nothing is labelled. The classes
    are the lines of PATH/classes.txt; without that file all masks are read once for the largest number.

    Images are brought to ``size`` x ``size``; None keeps their own size, height and width, where they all have one, and
    means 224 otherwise. Masks go the same way, by nearest neighbours.
    """
    found = {name: _pairs(path / name) for name in ("train", "test", "val") if _wanted(path, name)}
    sizes = {size_of(image) for pairs in found.values() for image, _ in pairs}
    classes = _classes(path, found)
    train = found.pop("train")
    parts = divided(
        train,
        found,
        val,
        partial(random_split, len(train), seed=seed),
        f"{path} has neither val/ nor test/. Expected {path}/val/images and {path}/val/masks beside train/.",
    )
    shape = _shape(sizes, size)
    pixels = sum(map(len, parts.values())) * max(h * w for h, w in sizes)
    keep, workers = storing(pixels, 4, workers)
    device = torch.device(device)
    splits = {
        name: SegmentationSplit(pairs, shape, device, statistics, workers, path, keep) for name, pairs in parts.items()
    }
    described = describe(ref, splits, classes, (3, *shape), seed, *statistics) | {"task": "segmentation"}
    return Data(
        ref, splits["train"], splits["val"], splits["test"], classes, (3, *shape), device, described,
        class_names=_names(path),
    )  # fmt: skip


def _wanted(path: Path, name: str) -> bool:
    return name == "train" or (path / name).is_dir()


def _shape(sizes: set[Size], size: int | None) -> Size:
    if size is not None:
        return size, size
    return next(iter(sizes)) if len(sizes) == 1 else (224, 224)


def _pairs(folder: Path) -> list[Sample]:
    """Image and mask of the same name, in the order of names; DataError where one lacks the other."""
    images, masks = (_by_stem(folder / kind) for kind in ("images", "masks"))
    lacks = {"masks": set(images) - set(masks), "images": set(masks) - set(images)}
    for kind, lacking in lacks.items():
        if lacking:
            raise DataError(
                f"{folder / kind} lacks {', '.join(sorted(lacking)[:5])} ({len(lacking)} in all). Expected a file of "
                "the same name, whatever its suffix, in images/ and in masks/."
            )
    if not images:
        raise DataError(f"{folder / 'images'} holds no images.")
    return [(images[stem], masks[stem]) for stem in sorted(images)]


def _by_stem(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. Expected images/ and masks/ in {folder.parent}.")
    found: dict[str, str] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in IMG_EXTENSIONS or file.name.startswith("."):
            continue
        if file.stem in found:
            raise DataError(f"{folder} holds {file.name} beside {Path(found[file.stem]).name}; expected one of them.")
        found[file.stem] = str(file)
    return found


def _names(path: Path) -> tuple[str, ...] | None:
    """Lines of classes.txt; None where there is none."""
    listed = path / "classes.txt"
    if not listed.is_file():
        return None
    if names := [line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]:
        return tuple(names)
    raise DataError(f"{listed} is empty; expected a class name a line, or no such file.")


def _classes(path: Path, found: dict[str, list[Sample]]) -> int:
    """Lines of classes.txt, or one more than the largest number in the masks of train/."""
    if names := _names(path):
        return len(names)
    classes = max(_classes_in(mask) for _, mask in found["train"])
    if classes == 0:
        raise DataError(f"The masks of {path}/train label no pixel: all are {IGNORE}.")
    others = (mask for name in ("val", "test") for _, mask in found.get(name, ()))
    if over := next((mask for mask in others if _classes_in(mask) > classes), None):
        raise DataError(
            f"{over} holds class {_classes_in(over) - 1}, above those in the masks of train/. Name all classes in "
            f"{path / 'classes.txt'}, one a line, or set the value to {IGNORE} where it is none."
        )
    return classes


def _classes_in(path: str) -> int:
    """One more than the largest class in a mask; 0 where nothing is labelled."""
    mask = mask_of(path)
    counted = mask[mask != IGNORE]
    return int(counted.max()) + 1 if counted.size else 0


def mask_of(path: str) -> np.ndarray:
    """Class numbers H,W of a mask file; DataError for colours."""
    image = decoded(path, mode=None)
    kind = INDICES.get(image.mode)
    if kind is None:
        raise DataError(
            f"{path} is an image of mode {image.mode}; expected a mask with one class number a pixel (a grey or "
            "palette image). Map its colours to class numbers first."
        )
    return np.array(image).astype(kind)


class SegmentationSplit(NormalisedSplit[Sample]):
    """Batches (images float32 N,3,H,W, normalised; masks int64 N,H,W)."""

    def __init__(
        self,
        samples: list[Sample],
        size: Size,
        device: torch.device,
        statistics: Statistics,
        workers: int,
        root: Path,
        keep: bool,
    ) -> None:
        super().__init__(samples, device, statistics, workers, root, keep, at_most(size))
        self.size = size

    @staticmethod
    def read(sample: Sample) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image, mask = image_of(sample[0]), torch.from_numpy(mask_of(sample[1]))
        if image.shape[1:] != mask.shape:
            sides = [" x ".join(map(str, t.shape[-2:])) for t in (mask, image)]
            raise DataError(f"{sample[1]} is {sides[0]}, but {sample[0]} is {sides[1]} (height x width).")
        return image, tv_tensors.Mask(mask)

    def change(self, augment: Augment | None) -> v2.Transform:
        return framing(self.size, augment)

    @staticmethod
    def collate(elements: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        images, masks = zip(*elements, strict=True)
        return torch.stack(images), torch.stack(masks)

    def told(self, sample: Sample) -> str:
        return " ".join(map(self.stamp, sample))
