"""Images with masks: paired, brought to a size, augmented together, refused when broken."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sentei.data import Augment, Data, load_data
from sentei.data.load import located
from sentei.data.samples import SampleSplit
from sentei.errors import DataError

SIZE = (24, 32)


def write(folder: Path, name: str, mask: np.ndarray, mode: str = "L") -> None:
    """A mask, and an image that shows it: class times 40 in each channel."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat(mask[..., None] * 40, 3, axis=2).astype(np.uint8)).save(folder / "images" / f"{name}.png")
    file = Image.fromarray(mask.astype(np.uint16 if mode == "I;16" else np.uint8))
    if mode == "P":
        file.putpalette([7, 99, 3] * 256)
    file.save(folder / "masks" / f"{name}.png")


def make(
    path: Path,
    parts: tuple[str, ...] = ("train", "val"),
    count: int = 10,
    mode: str = "L",
    size: tuple[int, int] = SIZE,
) -> Path:
    rng = np.random.default_rng(0)
    for part in parts:
        for i in range(count):
            blocks = rng.integers(0, 4, (3, 4))
            write(path / part, f"{i:02}", np.kron(blocks, np.ones((size[0] // 3, size[1] // 4))).astype(int), mode)
    return path


def load(path: Path, **options: object) -> Data:
    return load_data(f"segmentation:{path}", **{"normalize": "none", "workers": 0, **options})  # type: ignore[arg-type]


def shown(images: Tensor) -> Tensor:
    """The classes that the images show."""
    return images.mean(1) * 255 / 40


def test_masks_are_paired_split_and_described(tmp_path: Path) -> None:
    data = load(make(tmp_path))
    assert (len(data.train), len(data.val), len(data.test), data.num_classes) == (9, 1, 10, 4)
    assert data.input_shape == (3, *SIZE)
    assert data.description["task"] == "segmentation"
    x, y = next(data.test.batches(8))
    assert (x.shape, y.shape, x.dtype, y.dtype) == ((8, 3, *SIZE), (8, *SIZE), torch.float32, torch.int64)
    assert x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(shown(x), y.float(), atol=1e-3, rtol=0)


def test_val_and_test_are_both_used_and_val_can_be_carved(tmp_path: Path) -> None:
    make(tmp_path, ("train", "val", "test"))
    assert [len(split) for split in (load(tmp_path).train, load(tmp_path).val)] == [10, 10]
    carved = [load(tmp_path, val=3, seed=seed) for seed in (0, 0, 1)]
    assert [len(carved[0].train), len(carved[0].val), len(carved[0].test)] == [7, 3, 10]
    contents = [data.identity["content"] for data in carved]
    assert contents[0] == contents[1] != contents[2]
    with pytest.raises(DataError, match="A validation split of 10 does not fit 10 training images"):
        load(tmp_path, val=10)


def test_content_does_not_depend_on_the_place(tmp_path: Path) -> None:
    first, second = (load(make(tmp_path / name)) for name in "ab")
    assert first.identity == second.identity
    assert located(f"segmentation:{tmp_path}/a/../a", None)[0] == f"segmentation:{tmp_path}/a"


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_masks_are_class_numbers_whatever_their_colours(tmp_path: Path, mode: str) -> None:
    x, y = next(load(make(tmp_path, mode=mode)).test.batches(4))
    torch.testing.assert_close(shown(x), y.float(), atol=1e-3, rtol=0)


def test_image_and_mask_stay_together_through_crop_and_flip(tmp_path: Path) -> None:
    data = load(make(tmp_path))
    x, y = next(data.train.batches(9, train=True, augment=Augment(flip=True, scale=(0.3, 0.6))))
    assert x.shape == (9, 3, *SIZE)
    off = (shown(x) - y).abs()
    assert float((off < 0.1).float().mean()) > 0.6  # the rest lies on the edges between blocks, where images are smooth
    assert float((off < 0.6).float().mean()) > 0.9
    mirrored = (shown(x) - y.flip(2)).abs()
    assert float((mirrored < 0.1).float().mean()) < 0.6


def test_at_full_scale_training_shows_whole_images_half_of_them_mirrored(tmp_path: Path) -> None:
    data = load(make(tmp_path, count=30))
    whole = {tuple(y.flatten().tolist()): y for _, ys in data.train.batches(50) for y in ys}
    mirrored = {tuple(y.flip(1).flatten().tolist()) for y in whole.values()}
    batches = data.train.batches(9, train=True, augment=Augment(flip=True, scale=(1, 1)))
    seen = [tuple(y.flatten().tolist()) for _, masks in batches for y in masks]
    assert all(y in whole or y in mirrored for y in seen)
    assert 5 < sum(y in whole for y in seen) < 22


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one CPU
def test_pictures_follow_from_seed_and_epoch_alone(tmp_path: Path) -> None:
    make(tmp_path)

    def epoch(workers: int | None, epoch: int, batch_size: int = 3) -> tuple[Tensor, Tensor]:
        data = load(tmp_path, workers=workers)
        list(data.train.batches(3, train=True, seed=9, epoch=7))  # what is kept in memory changes nothing
        images, masks = zip(*data.train.batches(batch_size, train=True, seed=4, epoch=epoch), strict=True)
        return torch.cat(images), torch.cat(masks)

    first = epoch(None, 1)
    for other in (epoch(0, 1), epoch(2, 1), epoch(None, 1, 9)):
        assert all(map(torch.equal, first, other))
    assert not torch.equal(first[0], epoch(0, 2)[0])


def test_few_images_are_decoded_once(tmp_path: Path) -> None:
    data = load_data(f"segmentation:{make(tmp_path)}")
    assert isinstance(data.test, SampleSplit)
    assert data.test.workers == 0
    before = [x for x, _ in data.test.batches(4)]
    for file in (tmp_path / "val" / "images").iterdir():
        file.unlink()
    assert all(map(torch.equal, before, [x for x, _ in data.test.batches(4)]))


def test_images_of_several_sizes_are_brought_to_one(tmp_path: Path) -> None:
    make(tmp_path, ("train",))
    make(tmp_path, ("val",), size=(48, 32))
    assert load(tmp_path).input_shape == (3, 224, 224)
    data = load(tmp_path, image_size=48)
    for split, train in ((data.train, True), (data.test, False)):
        x, y = next(split.batches(4, train=train))
        assert (x.shape[2:], y.shape[1:]) == ((48, 48), (48, 48))
        assert set(y.unique().tolist()) <= {0, 1, 2, 3}


def test_evaluation_takes_as_many_images_as_their_size_allows(tmp_path: Path) -> None:
    data = load(make(tmp_path), image_size=1024)
    assert [len(x) for x, _ in data.test.batches(500)] == [2, 2, 2, 2, 2]


def test_classes_may_be_listed(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "classes.txt").write_text("road\nsky\ntree\ncar\npole\n")
    assert load(tmp_path).num_classes == 5
    (tmp_path / "classes.txt").write_text("\n")
    with pytest.raises(DataError, match="classes.txt is empty"):
        load(tmp_path)


def test_classes_that_training_does_not_have_are_refused(tmp_path: Path) -> None:
    make(tmp_path)
    write(tmp_path / "val", "03", np.full(SIZE, 6))
    with pytest.raises(DataError, match=r"val/masks/03.png holds class 6, above those in the masks of train/"):
        load(tmp_path)
    write(tmp_path / "val", "03", np.full(SIZE, 255))
    assert load(tmp_path).num_classes == 4
    for i in range(10):
        write(tmp_path / "train", f"{i:02}", np.full(SIZE, 255))
    with pytest.raises(DataError, match="label no pixel"):
        load(tmp_path)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_files_are_named(tmp_path: Path, workers: int) -> None:
    make(tmp_path)
    file = tmp_path / "val" / "images" / "03.png"
    file.write_bytes(file.read_bytes()[:70])
    data = load(tmp_path, workers=workers)
    with pytest.raises(DataError, match=r"val/images/03\.png cannot be read as an image"):
        list(data.test.batches(4))
    (tmp_path / "train" / "masks" / "02.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"train/masks/02\.png cannot be read as an image"):
        load(tmp_path)


def test_masks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    make(tmp_path)
    mask = tmp_path / "val" / "masks" / "03.png"
    Image.new("L", (8, 6)).save(mask)
    with pytest.raises(DataError, match=r"masks/03.png is 6 x 8, but .*images/03.png is 24 x 32"):
        list(load(tmp_path).test.batches(4))
    Image.new("RGB", SIZE[::-1]).save(mask)
    with pytest.raises(
        DataError, match=r"03.png is an image of mode RGB; expected a mask with one class number a pixel"
    ):
        load(tmp_path)


def test_broken_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no folder .*train/images"):
        load(tmp_path / "nowhere")
    make(tmp_path / "a", ("train",))
    with pytest.raises(DataError, match="neither val/ nor test/"):
        load(tmp_path / "a")
    make(tmp_path / "b")
    (tmp_path / "b" / "val" / "masks" / "04.png").unlink()
    with pytest.raises(DataError, match=r"val/masks lacks 04 \(1 in all\)"):
        load(tmp_path / "b")
    make(tmp_path / "c")
    Image.new("RGB", SIZE).save(tmp_path / "c" / "train" / "images" / "04.jpg")
    with pytest.raises(DataError, match=r"holds 04.png beside 04.jpg"):
        load(tmp_path / "c")
    for part in ("images", "masks"):
        (tmp_path / "d" / "train" / part).mkdir(parents=True)
    with pytest.raises(DataError, match="holds no images"):
        load(tmp_path / "d")
