"""Boxes in COCO's format: read, mapped to labels, moved with their images, refused when broken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sentei.data import Augment, Data, load_data
from sentei.data.coco import CocoSplit
from sentei.errors import DataError

HEIGHT, WIDTH = 24, 32


def make(path: Path, parts: tuple[str, ...] = ("train", "val"), count: int = 10, folder: str = "{part}") -> Path:
    """Each image has a white box (id 7) and a grey one (id 3) on black, the last one none."""
    rng = np.random.default_rng(0)
    for part in parts:
        place = path / folder.format(part=part)
        place.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {"images": [], "annotations": []}
        content["categories"] = [{"id": 7, "name": "white"}, {"id": 3, "name": "grey"}]
        for i in range(count):
            pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            for category, value, left in ((7, 255, 0), (3, 128, 16)) if i < count - 1 else ():
                x, y, w, h = left + int(rng.integers(0, 6)), int(rng.integers(0, 10)), int(rng.integers(4, 9)), 8
                pixels[y : y + h, x : x + w] = value
                content["annotations"].append({"image_id": 100 + i, "category_id": category, "bbox": [x, y, w, h]})
            Image.fromarray(pixels).save(place / f"{part}{i}.png")
            content["images"].append({"id": 100 + i, "file_name": f"{part}{i}.png", "height": HEIGHT, "width": WIDTH})
        (path / f"{part}.json").write_text(json.dumps(content))
    return path


def changed(path: Path, change: Callable[[dict[str, Any]], Any], part: str = "train") -> None:
    file = path / f"{part}.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def load(path: Path, **options: Any) -> Data:
    return load_data(f"coco:{path}", **{"workers": 0, **options})


def refuse_misplaced(image: Tensor, target: dict[str, Tensor], edge: int = 0) -> None:
    """Every box is filled with the value of its label and nothing else is bright, apart from so many smooth pixels."""
    rest = image.clone()
    for (x1, y1, x2, y2), label in zip(target["boxes"].round().int().tolist(), target["labels"].tolist(), strict=True):
        inside = image[:, y1 + edge : max(y2 - edge, 0), x1 + edge : max(x2 - edge, 0)]
        assert ((inside - {1: 128 / 255, 2: 1.0}[label]).abs() < 0.01).all()
        rest[:, max(y1 - edge, 0) : y2 + edge, max(x1 - edge, 0) : x2 + edge] = 0
    assert (rest > 0.01).float().mean() <= edge / 40  # a crop may leave less than a pixel of a box


def test_boxes_are_read_mapped_and_described(tmp_path: Path) -> None:
    data = load(make(tmp_path), val=2)
    assert (len(data.train), len(data.val), len(data.test), data.num_classes) == (8, 2, 10, 2)
    assert data.input_shape is None
    assert data.description["task"] == "detection"
    assert data.description["categories"] == [
        {"label": 1, "id": 3, "name": "grey"},
        {"label": 2, "id": 7, "name": "white"},
    ]
    assert json.loads(json.dumps(data.description)) == data.description
    images, targets = next(data.test.batches(500))
    assert [tuple(image.shape) for image in images] == [(3, HEIGHT, WIDTH)] * 8  # as many as evaluation takes at once
    assert all(image.is_contiguous() and type(image) is Tensor for image in images)
    assert [int(target["image_id"]) for target in targets] == [*range(100, 108)]
    for image, target in zip(images, targets, strict=True):
        assert (target["boxes"].dtype, target["labels"].dtype) == (torch.float32, torch.int64)
        assert all(type(value) is Tensor for value in target.values())
        refuse_misplaced(image, target)


def test_images_without_boxes_stay(tmp_path: Path) -> None:
    data = load(make(tmp_path, ("train", "val", "test")))
    for split in (data.train, data.val, data.test):
        targets = [target for _, part in split.batches(4) for target in part]
        assert tuple(targets[-1]["boxes"].shape) == (0, 4)
        assert tuple(targets[-1]["labels"].shape) == (0,)
    assert sum(len(images) for images, _ in data.train.batches(5, train=True, augment=Augment(scale=(0.5, 1)))) == 10


def test_crowds_and_boxes_without_an_area_are_dropped_and_others_kept_inside(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        first = {"image_id": 109, "category_id": 3}
        boxes = [[1, 1, 5, 0], [40, 2, 5, 5], [-3, 20, 8, 10]]
        content["annotations"] += [{**first, "bbox": box} for box in boxes]
        content["annotations"].append({**first, "bbox": [1, 1, 5, 5], "iscrowd": 1})

    changed(make(tmp_path), change, "val")
    *_, (_, targets) = load(tmp_path).test.batches(1)
    assert targets[0]["boxes"].tolist() == [[0, 20, 5, 24]]


def test_boxes_follow_flip_crop_and_resizing(tmp_path: Path) -> None:
    data = load(make(tmp_path, count=20), val=2)
    turned = 0
    plain = {int(t["image_id"]): t["boxes"] for _, part in data.train.batches(8) for t in part}
    for images, targets in data.train.batches(6, train=True):
        for image, target in zip(images, targets, strict=True):
            refuse_misplaced(image, target)
            turned += not torch.equal(plain[int(target["image_id"])], target["boxes"])
    assert 4 < turned < 15
    crop = Augment(flip=True, scale=(0.4, 0.6))
    for images, targets in data.train.batches(6, train=True, augment=crop):
        for image, target in zip(images, targets, strict=True):
            assert image.shape == (3, HEIGHT, WIDTH)
            refuse_misplaced(image, target, edge=2)
    images, targets = next(load(tmp_path, image_size=48).test.batches(8))
    for image, target in zip(images, targets, strict=True):
        assert image.shape == (3, 48, 48)
        refuse_misplaced(image, target, edge=2)
    assert load(tmp_path, image_size=48).input_shape == (3, 48, 48)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one CPU
def test_pictures_follow_from_seed_and_epoch_alone(tmp_path: Path) -> None:
    make(tmp_path)

    def epoch(workers: int | None, epoch: int) -> list[Tensor]:
        split = load(tmp_path, workers=workers).train
        assert isinstance(split, CocoSplit)
        assert (split.kept is None) == bool(workers)
        batches = list(split.batches(3, train=True, seed=4, epoch=epoch, augment=Augment(True, scale=(0.5, 1))))
        return [t for images, targets in batches for t in (*images, *(target["boxes"] for target in targets))]

    first = epoch(None, 1)
    assert all(all(map(torch.equal, first, epoch(workers, 1))) for workers in (0, 2))
    assert not all(torch.equal(a, b) for a, b in zip(first, epoch(0, 2), strict=True) if a.shape == b.shape)


def test_a_changed_batch_does_not_change_what_is_kept(tmp_path: Path) -> None:
    split = load(make(tmp_path)).test
    (image, *_), (target, *_) = next(split.batches(4))
    before = target["boxes"].clone()
    image.zero_(), target["boxes"].zero_()
    (image, *_), (target, *_) = next(split.batches(4))
    assert torch.equal(target["boxes"], before)
    assert image.max() == 1


def test_content_tells_boxes_apart_but_not_places(tmp_path: Path) -> None:
    first, second = (load(make(tmp_path / name)) for name in "ab")
    assert first.identity == second.identity
    changed(tmp_path / "b", lambda content: content["annotations"][0]["bbox"].__setitem__(0, 9.5))
    assert load(tmp_path / "b").identity != first.identity


@pytest.mark.parametrize("folder", ["{part}", "images", "."])
def test_files_are_looked_for_in_three_places(tmp_path: Path, folder: str) -> None:
    assert len(load(make(tmp_path, folder=folder)).test) == 10


def put(where: str, name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content[where][0].__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda content: content.pop("categories"), "lacks the list 'categories'"),
        (lambda content: content["images"].clear(), "names no images"),
        (lambda content: content["annotations"].clear(), "has no boxes"),
        (put("annotations", "category_id", 5), "not in COCO's format .KeyError: 5"),
        (put("annotations", "bbox", [1, 2, 3]), "not in COCO's format .ValueError"),
        (put("annotations", "image_id", 5), "annotations of image 5, which is not among its images"),
        (put("images", "file_name", "none.png"), "names none.png, which is not in"),
        (put("categories", "name", "red"), "val.json has other categories than train.json"),
    ],
)
def test_broken_annotations_are_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None], text: str) -> None:
    changed(make(tmp_path), change)
    with pytest.raises(DataError, match=text):
        load(tmp_path)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no file .*train\.json"):
        load(tmp_path)
    make(tmp_path, ("train",))
    with pytest.raises(DataError, match=r"neither val\.json nor test\.json"):
        load(tmp_path)
    make(tmp_path)
    (tmp_path / "val" / "val3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"val/val3\.png cannot be read as an image"):
        list(load(tmp_path).test.batches(4))
    Image.new("RGB", (9, 9)).save(tmp_path / "val" / "val3.png")
    with pytest.raises(DataError, match=r"val3\.png is 9 x 9, but its annotation says 24 x 32"):
        list(load(tmp_path).test.batches(4))
    (tmp_path / "val.json").write_text("{")
    with pytest.raises(DataError, match=r"val\.json cannot be read"):
        load(tmp_path)


def test_normalisation_is_the_detectors_own(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="detectors do that themselves"):
        load(make(tmp_path), normalize="imagenet")
