"""Images with boxes in COCO's format: PATH/train.json, PATH/train/NAME.jpg, and val or test likewise."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from sentei.data.batches import moved
from sentei.data.dataset import Data
from sentei.data.samples import Change, SampleSplit, divided, framing, image_of, size_of, storing
from sentei.data.splits import Augment, random_split
from sentei.errors import DataError

Target = dict[str, Any]
Box = tuple[float, float, float, float]

AT_MOST = 8
"""Images in one batch of evaluation: detectors enlarge them."""


@dataclass(frozen=True)
class Annotated:
    """An image file of a known size, with its boxes (x1, y1, x2, y2 in pixels) and their labels from 1."""

    path: str
    height: int
    width: int
    boxes: tuple[Box, ...]
    labels: tuple[int, ...]
    id: int


def load_coco(
    ref: str,
    path: Path,
    *,
    val: int | float | None,
    seed: int,
    size: int | None,
    device: str | torch.device,
    workers: int | None = None,
) -> Data:
    """Read the annotations; images are decoded when they are asked for, and kept where they are few.

    A file name is looked up in PATH/train (or val, test), then in PATH and in PATH/images. The splits are those of an
    image folder, one JSON file in place of each folder.

    Labels are 1 to ``num_classes``, in the order of the category ids in train.json (``description["categories"]`` has
    both): 0 is the background, so torchvision's detectors are built with ``data.num_classes + 1`` classes. Crowds and
    boxes without an area are left out; images without boxes stay, with boxes of shape 0,4. ``size`` brings all images
    to size x size; None keeps theirs. Images are not normalised, as torchvision's detectors do that themselves.
    """
    contents = {name: _json(path / f"{name}.json") for name in ("train", "test", "val") if _wanted(path, name)}
    categories = _categories(path, contents)
    labels = {number: label for label, number in enumerate(categories, start=1)}
    found = {name: _samples(path, name, content, labels) for name, content in contents.items()}
    train = found.pop("train")
    parts = divided(
        train,
        found,
        val,
        partial(random_split, len(train), seed=seed),
        f"{path} has neither val.json nor test.json. Expected {path}/val.json and {path}/val/ beside train.json.",
    )
    keep, workers = storing(sum(s.height * s.width for part in parts.values() for s in part), 3, workers)
    device = torch.device(device)
    splits = {name: CocoSplit(part, size, device, workers, path, keep) for name, part in parts.items()}
    shape = None if size is None else (3, size, size)
    sizes = {name: len(split) for name, split in splits.items()}
    named = [{"label": labels[number], "id": number, "name": name} for number, name in categories.items()]
    described: dict[str, Any] = {"data": ref, **sizes, "classes": len(labels), "image_size": size, "split_seed": seed}
    described |= {"categories": named, "task": "detection"}
    return Data(
        ref, splits["train"], splits["val"], splits["test"], len(labels), shape, device, described,
        class_names=tuple(categories.values()),
    )  # fmt: skip


def _wanted(path: Path, name: str) -> bool:
    return name == "train" or (path / f"{name}.json").is_file()


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"There is no file {file}. Expected annotations in COCO's format.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}). Expected annotations in COCO's format, JSON.") from error
    lists = ("images", "annotations", "categories")
    lacking = [k for k in lists if not isinstance(content, dict) or not isinstance(content.get(k), list)]
    if lacking:
        raise DataError(f"{file} lacks the list {lacking[0]!r}; expected {', '.join(lists)}, as in COCO's format.")
    if not content["images"]:
        raise DataError(f"{file} names no images.")
    return content


def _categories(path: Path, contents: dict[str, dict[str, Any]]) -> dict[int, str]:
    """Names by id, in the order of ids; the same in every file."""
    found = {}
    for name, content in contents.items():
        try:
            found[name] = {int(c["id"]): str(c.get("name", c["id"])) for c in content["categories"]}
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path / name}.json has a category without an id ({error!r}).") from error
        if found[name] != found["train"]:
            raise DataError(
                f"{path / name}.json has other categories than train.json; expected the same ids and names."
            )
    if not found["train"]:
        raise DataError(f"{path}/train.json has no categories.")
    return dict(sorted(found["train"].items()))


def _samples(path: Path, name: str, content: dict[str, Any], labels: dict[int, int]) -> list[Annotated]:
    file, boxes = path / f"{name}.json", defaultdict(list)
    try:
        for entry in content["annotations"]:
            if not entry.get("iscrowd"):
                boxes[entry["image_id"]].append((labels[entry["category_id"]], *map(float, entry["bbox"])))
        samples = [_sample(path, name, image, boxes.pop(image["id"], [])) for image in content["images"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{file} is not in COCO's format ({type(error).__name__}: {error}). Expected id and file_name of each "
            "image; image_id, a known category_id and bbox [x, y, width, height] of each annotation."
        ) from error
    if boxes:
        raise DataError(f"{file} has annotations of image {next(iter(boxes))}, which is not among its images.")
    if not any(sample.boxes for sample in samples):
        raise DataError(f"{file} has no boxes (crowds and those without an area are not counted).")
    return samples


def _sample(path: Path, part: str, image: dict[str, Any], entries: list[tuple[Any, ...]]) -> Annotated:
    file = _file(path, part, image["file_name"])
    height, width = (image["height"], image["width"]) if {"height", "width"} <= image.keys() else size_of(file)
    found = [(label, _corners(box, height, width)) for label, *box in entries]
    real = [(label, box) for label, box in found if box[2] > box[0] and box[3] > box[1]]
    boxes, labels = tuple(box for _, box in real), tuple(label for label, _ in real)
    return Annotated(file, int(height), int(width), boxes, labels, int(image["id"]))


def _corners(box: Sequence[float], height: int, width: int) -> Box:
    x, y, w, h = box
    return max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))


def _file(path: Path, part: str, name: str) -> str:
    places = (path / part / name, path / name, path / "images" / name)
    file = next((p for p in places if p.is_file()), None)
    if file is None:
        raise DataError(f"{path / part}.json names {name}, which is not in {', '.join(str(p.parent) for p in places)}.")
    return str(file)


class CocoSplit(SampleSplit[Annotated]):
    """Batches (list of images float32 3,H,W in 0..1; list of targets).

    A target has "boxes" (float32 N,4: x1, y1, x2, y2 in pixels), "labels" (int64 N, from 1) and "image_id" (int64).
    """

    def __init__(
        self,
        samples: list[Annotated],
        size: int | None,
        device: torch.device,
        workers: int,
        root: Path,
        keep: bool,
    ) -> None:
        super().__init__(samples, device, workers, root, Augment(flip=True, scale=(1.0, 1.0)), keep, AT_MOST)
        self.size = None if size is None else (size, size)

    @staticmethod
    def read(sample: Annotated) -> tuple[tv_tensors.Image, Target]:
        image = image_of(sample.path)
        if image.shape[1:] != (sample.height, sample.width):
            raise DataError(
                f"{sample.path} is {image.shape[1]} x {image.shape[2]}, but its annotation says {sample.height} x "
                f"{sample.width} (height x width)."
            )
        boxes = torch.tensor(sample.boxes, dtype=torch.float32).reshape(-1, 4)
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=image.shape[1:]),
            "labels": torch.tensor(sample.labels, dtype=torch.int64),
            "image_id": torch.tensor(sample.id),
        }
        return image, target

    def change(self, augment: Augment | None) -> Change:
        if augment is None or augment.scale == (1.0, 1.0):
            return framing(self.size, augment)
        # Of a part of the image some boxes are left with less than a pixel.
        return v2.Compose([framing(self.size, augment), v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes()])

    @staticmethod
    def collate(elements: list[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
        return [_plain(image) for image, _ in elements], [
            {name: _plain(value) for name, value in target.items()} for _, target in elements
        ]

    def finish(self, batch: tuple[list[Tensor], list[Target]]) -> tuple[list[Tensor], list[Target]]:
        images, targets = moved(batch, self.device)
        return [image.float() / 255 for image in images], targets

    def told(self, sample: Annotated) -> str:
        return f"{self.stamp(sample.path)} {sample.id} {sample.boxes} {sample.labels}"


def _plain(value: Tensor) -> Tensor:
    """A copy, as what was decoded may be kept for the next epoch."""
    return value.as_subclass(Tensor).clone(memory_format=torch.contiguous_format)
