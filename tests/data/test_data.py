"""Data sets by reference: found, split, refused."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets
from torchvision.transforms.v2.functional import resize

from sentei.data import load_data
from sentei.data.load import stratified_split
from sentei.data.splits import TensorSplit
from sentei.errors import DataError


def labels_of(split: object) -> torch.Tensor:
    assert isinstance(split, TensorSplit)
    return split.labels


def test_digits_are_split_by_class_without_overlap() -> None:
    data = load_data("digits", seed=3)
    assert (len(data.train), len(data.val), len(data.test)) == (1257, 180, 360)
    assert data.num_classes == 10
    assert data.input_shape == (1, 8, 8)
    for split in (data.train, data.val, data.test):
        share = torch.bincount(labels_of(split)) / len(split)
        assert float(share.min()) > 0.08
    x = torch.cat([x for x, _ in data.train.batches(500)])
    assert abs(float(x.mean())) < 1e-3
    assert abs(float(x.std()) - 1) < 1e-3


def test_description_holds_only_plain_values() -> None:
    import json

    described = load_data("digits").description
    assert json.loads(json.dumps(described)) == described
    assert described["val"] == 180


def test_split_is_seeded_stratified_and_exact() -> None:
    labels = np.repeat(np.arange(5), 40)
    kept, held = stratified_split(labels, 0.1, 0)
    assert len(held) == 20
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(200))
    assert np.bincount(labels[held.numpy()]).tolist() == [4] * 5
    assert torch.equal(held, stratified_split(labels, 0.1, 0)[1])
    assert not torch.equal(held, stratified_split(labels, 0.1, 1)[1])
    assert len(stratified_split(labels, 0, 0)[1]) == 0


@pytest.mark.parametrize("val", [-1, 4, 199, 0.001])
def test_impossible_validation_split_is_refused(val: float) -> None:
    with pytest.raises(DataError, match="does not fit 200 training images of 5 classes"):
        stratified_split(np.repeat(np.arange(5), 40), val, 0)


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(DataError, match="Did you mean 'cifar10'"):
        load_data("cifar-10")


def test_missing_data_says_where_it_looked_and_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.CIFAR10, "download", offline)
    monkeypatch.setattr(datasets.FashionMNIST, "download", offline)
    monkeypatch.setenv("SENTEI_DATA", str(tmp_path / "named"))
    with pytest.raises(DataError) as caught:
        load_data("cifar10")
    for part in ("named", "cifar-10-batches-py", "no route to host", "cifar-10-python.tar.gz", "--data-root"):
        assert part in str(caught.value)
    with pytest.raises(DataError, match="FashionMNIST") as caught:
        load_data("fashion-mnist", root=tmp_path / "given")
    assert "named" not in str(caught.value)


def test_incomplete_cifar_is_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python" / "train").write_bytes(b"not the data")
    with pytest.raises(DataError, match="incomplete or damaged"):
        load_data("cifar100", root=tmp_path)


def write_idx(folder: Path, compress: bool) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            raw = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
            if compress:
                (folder / f"{name}.gz").write_bytes(gzip.compress(raw))
            else:
                (folder / name).write_bytes(raw)


@pytest.mark.parametrize("place", ["FashionMNIST/raw", "."])
@pytest.mark.parametrize("compress", [False, True])
def test_fashion_mnist_is_read_plain_and_gzipped(tmp_path: Path, place: str, compress: bool) -> None:
    root = tmp_path / "root"
    write_idx(root / place, compress)
    data = load_data("fashion-mnist", root=root, val=20)
    assert (len(data.train), len(data.val), len(data.test)) == (40, 20, 20)
    assert data.input_shape == (1, 28, 28)
    assert isinstance(data.test, TensorSplit)
    expected = np.random.default_rng(0)
    expected.integers(0, 256, (60, 28, 28), dtype=np.uint8)
    images = expected.integers(0, 256, (20, 28, 28), dtype=np.uint8)
    assert np.array_equal(data.test.images[..., 0].numpy(), images)


def test_damaged_idx_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path / "raw", compress=False)
    path = tmp_path / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="train-images-idx3-ubyte is damaged"):
        load_data("fashion-mnist", root=tmp_path / "raw")


FUNCTION = """
import numpy as np
rng = np.random.default_rng(0)
def images(n, *shape): return rng.integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n) % 4
def nchw(): return *images(80, 3, 6, 5), *images(20, 3, 6, 5)
def nhwc(): return *images(80, 6, 5, 3), *images(20, 6, 5, 3)
def grey(): return *images(80, 6, 5), *images(20, 6, 5)
def named():
    x, y = images(80, 3, 6, 5)
    return dict(x_train=x[:60], y_train=y[:60], x_val=x[60:], y_val=y[60:], x_test=x, y_test=y,
                num_classes=7, mean=[.5] * 3, std=[.5] * 3)
def mixed(): return *images(80, 3, 6, 5), *images(20, 3, 6, 4)
def negative():
    x, y = images(80, 3, 6, 5)
    return x, y - 1, x, y
def infinite(): return np.full((80, 3, 6, 5), np.inf), np.arange(80) % 4, np.zeros((4, 3, 6, 5)), np.arange(4)
def words(): return "hello"
def short():
    x, y = images(80, 3, 6, 5)
    return x, y[:-1], x, y
"""


@pytest.fixture
def user_file(tmp_path: Path) -> str:
    path = tmp_path / "my_data.py"
    path.write_text(FUNCTION)
    return str(path)


@pytest.mark.parametrize(("name", "shape"), [("nchw", (3, 6, 5)), ("nhwc", (3, 6, 5)), ("grey", (1, 6, 5))])
def test_user_function_in_any_layout(user_file: str, name: str, shape: tuple[int, int, int]) -> None:
    data = load_data(f"{user_file}:{name}")
    assert (len(data.train), len(data.val), len(data.test)) == (72, 8, 20)
    assert data.input_shape == shape
    x, _ = next(data.val.batches(4))
    assert x.shape == (4, *shape)
    assert float(x.std()) == pytest.approx(1, abs=0.2)


def test_user_function_may_name_its_parts(user_file: str) -> None:
    data = load_data(f"{user_file}:named")
    assert (len(data.train), len(data.val), len(data.test), data.num_classes) == (60, 20, 80, 7)
    assert data.description["mean"] == [0.5] * 3


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mixed", "test images are .6, 4, 3., the training images .6, 5, 3."),
        ("negative", "labels -1..2"),
        ("infinite", "NaN or infinity"),
        ("words", "or the four arrays"),
        ("short", "one label for each"),
        ("absent", "has no function 'absent'.*nchw"),
    ],
)
def test_user_function_with_bad_data_is_refused(user_file: str, name: str, text: str) -> None:
    with pytest.raises(DataError, match=text):
        load_data(f"{user_file}:{name}")


def test_normalisation_can_be_chosen(user_file: str) -> None:
    ref = f"{user_file}:nchw"
    assert load_data(ref, normalize="imagenet").description["mean"] == [0.485, 0.456, 0.406]
    x, _ = next(load_data(ref, normalize="none").test.batches(20))
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1
    assert load_data(ref, normalize=([0.1] * 3, [0.9] * 3)).description["std"] == [0.9] * 3
    for bad in ("other", ([0.1], [0.9]), ([0.1] * 3, [0.0] * 3)):
        with pytest.raises(DataError, match="normalize"):
            load_data(ref, normalize=bad)


def test_image_size_resizes_once() -> None:
    data = load_data("digits", image_size=16)
    assert data.input_shape == (1, 16, 16)
    native = load_data("digits")
    assert isinstance(data.test, TensorSplit)
    assert isinstance(native.test, TensorSplit)
    expected = resize(native.test.images.permute(0, 3, 1, 2), [16, 16], antialias=True).permute(0, 2, 3, 1)
    assert int((data.test.images.int() - expected.int()).abs().max()) <= 1


def test_a_part_of_the_classes_and_of_the_images_of_each() -> None:
    whole = load_data("digits")
    few = load_data("digits", classes=("7", "2"), per_class=30)
    assert few.class_names == ("2", "7")
    assert (len(few.train) + len(few.val), few.num_classes) == (60, 2)
    assert len(few.val) == round(180 * 60 / 1437)
    labels = whole.test.labels
    assert len(few.test) == int(((labels == 2) | (labels == 7)).sum())
    assert few.test.labels.tolist() == [int(y == 7) for y in labels.tolist() if y in (2, 7)]
    drawn = [load_data("digits", classes=4, seed=seed).class_names for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1
    assert all(len(names) == 4 and sorted(names) == list(names) for names in drawn)
    assert few.identity != load_data("digits", classes=("7", "2"), per_class=30, seed=1).identity


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"classes": ("1", "two")}, "digits has no class 'two'"),
        ({"classes": ("1",)}, "expected a number, or two names"),
        ({"classes": 1}, "expected 2 or more"),
        ({"classes": 11}, "10 classes, fewer than the 11"),
        ({"per_class": 0}, "expected 1 or more"),
    ],
)
def test_parts_that_cannot_be_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        load_data("digits", **given)
