"""Image folders: found, decoded, augmented the same way with any number of workers, refused when broken."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sentei.data import Augment, load_data
from sentei.errors import DataError


def make_folder(path: Path, parts: tuple[str, ...] = ("train", "val"), classes: int = 3, count: int = 12) -> Path:
    rng = np.random.default_rng(0)
    for part in parts:
        for label in range(classes):
            folder = path / part / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return path


def test_folder_is_split_and_shaped(tmp_path: Path) -> None:
    data = load_data(f"imagefolder:{make_folder(tmp_path)}", image_size=16, val=6, workers=0)
    assert (len(data.train), len(data.val), len(data.test), data.num_classes) == (30, 6, 36, 3)
    for split, train in ((data.train, True), (data.val, False)):
        x, y = next(split.batches(6, train=train))
        assert x.shape == (6, 3, 16, 16)
        assert x.dtype == torch.float32
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert y.dtype == torch.int64


def test_val_and_test_folders_are_both_used(tmp_path: Path) -> None:
    make_folder(tmp_path)
    make_folder(tmp_path, ("test",), count=5)
    data = load_data(f"imagefolder:{tmp_path}", image_size=16, workers=0)
    assert (len(data.train), len(data.val), len(data.test)) == (36, 36, 15)


def test_relative_path_is_looked_up_in_the_root(tmp_path: Path) -> None:
    make_folder(tmp_path / "pictures")
    assert len(load_data("imagefolder:pictures", root=tmp_path, image_size=16, workers=0).test) == 36


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one CPU
def test_workers_change_nothing_and_epochs_do(tmp_path: Path) -> None:
    ref = f"imagefolder:{make_folder(tmp_path)}"

    def epoch(workers: int, epoch: int) -> torch.Tensor:
        data = load_data(ref, image_size=16, workers=workers, val=6)
        return torch.cat([x for x, _ in data.train.batches(10, train=True, seed=4, epoch=epoch)])

    assert torch.equal(epoch(0, 1), epoch(2, 1))
    assert not torch.equal(epoch(0, 1), epoch(0, 2))


def test_loading_leaves_the_global_random_numbers_alone(tmp_path: Path) -> None:
    data = load_data(f"imagefolder:{make_folder(tmp_path)}", image_size=16, workers=0)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(data.train.batches(8, train=True))
    assert torch.equal(torch.rand(3), expected)


def test_scale_of_the_random_crop_is_obeyed(tmp_path: Path) -> None:
    for label in ("a", "b"):
        for part in ("train", "val"):
            (tmp_path / part / label).mkdir(parents=True)
            pixels = np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 1, 3))
            for i in range(4):
                Image.fromarray(pixels).save(tmp_path / part / label / f"{i}.png")
    data = load_data(f"imagefolder:{tmp_path}", image_size=32, val=2, workers=0, normalize="none")

    def spread(scale: tuple[float, float]) -> float:
        x, _ = next(data.train.batches(6, train=True, augment=Augment(scale=scale)))
        return float((x.amax(dim=(1, 2, 3)) - x.amin(dim=(1, 2, 3))).mean())

    assert spread((1.0, 1.0)) > 0.85
    assert spread((0.05, 0.06)) < 0.4


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_named(tmp_path: Path, workers: int) -> None:
    make_folder(tmp_path)
    (tmp_path / "val" / "class1" / "03.png").write_bytes(b"not a picture")
    data = load_data(f"imagefolder:{tmp_path}", image_size=16, workers=workers)
    with pytest.raises(DataError, match=r"class1/03\.png cannot be read as an image"):
        list(data.test.batches(8))


def test_broken_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no folder"):
        load_data(f"imagefolder:{tmp_path / 'nowhere'}")
    make_folder(tmp_path / "a", ("train",))
    with pytest.raises(DataError, match="neither val/ nor test/"):
        load_data(f"imagefolder:{tmp_path / 'a'}")
    make_folder(tmp_path / "b")
    (tmp_path / "b" / "train" / "extra").mkdir()
    with pytest.raises(DataError, match="extra"):
        load_data(f"imagefolder:{tmp_path / 'b'}")
    make_folder(tmp_path / "c", ("train",), classes=3)
    make_folder(tmp_path / "c", ("val",), classes=2)
    with pytest.raises(DataError, match="val/ lacks class2"):
        load_data(f"imagefolder:{tmp_path / 'c'}")


def test_a_part_of_a_folder(tmp_path: Path) -> None:
    make_folder(tmp_path)
    data = load_data(
        f"imagefolder:{tmp_path}", image_size=16, workers=0, classes=("class2", "class0"), per_class=5, val=2
    )
    assert (len(data.train), len(data.val), len(data.test), data.num_classes) == (8, 2, 24, 2)
    assert data.class_names == ("class0", "class2")
    named = {
        (Path(path).parent.name, label) for split in (data.train, data.val, data.test) for path, label in split.samples
    }
    assert named == {("class0", 0), ("class2", 1)}
    x, _ = next(data.train.batches(8, train=True))
    assert len(x) == 8


@pytest.mark.parametrize("kind", ["segmentation", "coco"])
def test_what_has_no_classes_an_image_has_no_parts(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match="no class of their own"):
        load_data(f"{kind}:{tmp_path}", classes=3)
