"""Several processes share every batch, and an epoch goes on in its middle: the pictures are those of one process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import sentei
from sentei.data import Augment, load_data
from sentei.data.splits import WHOLE, Part, Split, TensorSplit
from sentei.errors import DataError
from tests.data.test_folder import make_folder

Make = Callable[[Path], Split]
EPOCH: dict[str, Any] = {"train": True, "seed": 3, "epoch": 1}


def in_memory(_: Path) -> Split:
    images = torch.randint(0, 256, (23, 6, 6, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    return TensorSplit(images, torch.arange(23), (0.4,) * 3, (0.2,) * 3, Augment(flip=True, crop=2, cutout=3))


def in_files(path: Path, workers: int = 0) -> Split:
    folder = make_folder(path, classes=2) if not path.joinpath("train").exists() else path
    return load_data(f"imagefolder:{folder}", image_size=16, workers=workers, val=2).train


def with_workers(path: Path) -> Split:
    return in_files(path, workers=2)


def from_loader(_: Path) -> Split:
    set_ = TensorDataset(torch.arange(48.0).view(24, 2), torch.arange(24))
    return sentei.Data.of(train=DataLoader(set_, 7, shuffle=True)).train


KINDS = pytest.mark.parametrize("make", [in_memory, in_files, with_workers, from_loader])
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one CPU


def batches(split: Split, batch_size: int, **how: Any) -> list[tuple[Tensor, Tensor]]:
    return list(split.batches(batch_size, **how))


def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def contents(found: list[tuple[Tensor, Tensor]]) -> list[tuple[int, bytes]]:
    return sorted((int(y), x.contiguous().numpy().tobytes()) for xs, ys in found for x, y in zip(xs, ys, strict=True))


@KINDS
@pytest.mark.parametrize("batch_size", [7, 4])
def test_parts_of_a_training_epoch_make_up_the_whole(make: Make, batch_size: int, tmp_path: Path) -> None:
    split = make(tmp_path)
    alone = batches(split, batch_size, **EPOCH)
    for of in (1, 2, 3):
        parts = [batches(split, batch_size, **EPOCH, part=Part(i, of)) for i in range(of)]
        assert {len(part) for part in parts} == {len(alone)}
        for whole, *pieces in zip(alone, *parts, strict=True):
            x, y = (torch.cat(values) for values in zip(*pieces, strict=True))
            assert same(whole, (x, y))
            assert [len(y) for _, y in pieces] == [len(p) for p in whole[1].tensor_split(of)]


@KINDS
def test_parts_of_an_evaluation_share_the_samples(make: Make, tmp_path: Path) -> None:
    split = make(tmp_path)
    whole = contents(batches(split, 7))
    assert len(whole) == len(split)
    for of in (2, 3):
        parts = [batches(split, 7, part=Part(i, of)) for i in range(of)]
        assert contents([batch for part in parts for batch in part]) == whole


@KINDS
@pytest.mark.parametrize("part", [WHOLE, Part(1, 2)])
def test_an_epoch_goes_on_in_its_middle(make: Make, part: Part, tmp_path: Path) -> None:
    split = make(tmp_path)
    for how in (EPOCH, {}, {**EPOCH, "limit": 15}):
        whole = batches(split, 4, **how, part=part)
        for start in (0, 1, 3, 99):
            rest = batches(split, 4, **how, part=part, start=start)
            assert len(rest) == max(len(whole) - start, 0)
            assert all(map(same, rest, whole[start:]))


@pytest.mark.parametrize("make", [in_memory, in_files])
def test_a_batch_too_small_to_share_goes_to_everyone(make: Make, tmp_path: Path) -> None:
    split = make(tmp_path)
    alone = batches(split, 2, **EPOCH)
    for i in range(3):
        own = batches(split, 2, **EPOCH, part=Part(i, 3))
        assert len(own) == len(alone)
        assert all(map(same, own, alone))
    assert [len(batches(split, 64, limit=2, part=Part(i, 3))) for i in range(3)] == [1, 1, 0]


def test_a_loaders_last_small_batch_goes_to_everyone() -> None:
    split = sentei.Data.of(train=[torch.ones(4, 1), torch.full((2, 1), 2.0)]).train
    sizes = [[len(b) for b in split.batches(0, train=True, part=Part(i, 3))] for i in range(3)]
    assert sizes == [[2, 2], [1, 2], [1, 2]]


def test_only_own_samples_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = in_files(tmp_path)
    decoded: list[Any] = []
    read = type(split).read
    monkeypatch.setattr(type(split), "read", staticmethod(lambda sample: (decoded.append(sample), read(sample))[1]))
    parts = [batches(split, 5, **EPOCH, part=Part(i, 2), start=2) for i in range(2)]
    assert len(decoded) == sum(len(y) for part in parts for _, y in part) == 10
    assert len(set(decoded)) == 10


@pytest.mark.parametrize(("index", "of"), [(2, 2), (-1, 2), (0, 0)])
def test_a_part_that_cannot_be_is_refused(index: int, of: int) -> None:
    with pytest.raises(DataError, match="index from 0 to below"):
        Part(index, of)
