"""Tar shards: found by pattern, folder or list, indexed once, every sample once an epoch, refused when broken."""

import io
import json
import re
import sys
import tarfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
import yaml
from PIL import Image

from sentei.data import Augment, Data, Split, load_data, shardahead, shards
from sentei.data.shards import ShardSplit, mixed
from sentei.data.splits import Part
from sentei.errors import DataError
from tests.data.test_folder import make_folder

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one CPU
EPOCH: dict[str, Any] = {"train": True, "seed": 3}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTEI_CACHE", str(tmp_path / "cache"))


def png(number: int) -> bytes:
    """A picture of one pixel that says which it is."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1), (number >> 16, number >> 8 & 255, number & 255)).save(file, "png")
    return file.getvalue()


def numbers(x: torch.Tensor) -> list[int]:
    r, g, b = (x[:, :, 0, 0] * 255).round().long().T
    return (r * 65536 + g * 256 + b).tolist()


def make_shards(path: Path, sizes: Sequence[int], name: str = "ids-train", first: int = 0, classes: int = 4) -> Path:
    """Shards of so many numbered pictures each."""
    path.mkdir(exist_ok=True)
    for shard, size in enumerate(sizes):
        with webdataset.TarWriter(str(path / f"{name}-{shard:03}.tar")) as out:
            for number in range(first, first + size):
                out.write({"__key__": f"{number:08}", "png": png(number), "cls": number % classes})
        first += size
    return path


def load(ref: str, workers: int = 0, **how: Any) -> Data:
    return load_data(ref, image_size=1, workers=workers, normalize="none", **how)


def seen(split: Split, batch_size: int, **how: Any) -> list[list[int]]:
    return [numbers(x) for x, _ in split.batches(batch_size, **how)]


def train_and_val(path: Path) -> str:
    make_shards(path, [10, 25, 13])
    make_shards(path, [7, 5], "ids-val", 1000)
    return f"webdataset:{path}/ids-train-{{000..002}}.tar"


# -- what is found


def test_a_pattern_finds_its_other_splits(tmp_path: Path) -> None:
    data = load(train_and_val(tmp_path / "a"), val=8)
    assert (len(data.train), len(data.val), len(data.test), data.num_classes) == (40, 8, 12, 4)
    assert data.class_names is None
    assert sum(seen(data.test, 5), []) == list(range(1000, 1012))
    assert all(i % 4 == int(label) for x, y in data.test.batches(5) for i, label in zip(numbers(x), y, strict=True))
    assert sorted(sum(seen(data.train, 9) + seen(data.val, 9), [])) == list(range(48))


def test_folders_and_lists_name_the_same_data(tmp_path: Path) -> None:
    ref = train_and_val(tmp_path / "a")
    listed = tmp_path / "list.yaml"
    shards = ["a/ids-train-000.tar", "a/ids-train-{001..002}.tar"]
    listed.write_text(yaml.safe_dump({"train": shards, "val": "a/ids-val-*.tar"}))
    piped = tmp_path / "list.json"
    command = f"pipe:cat {tmp_path}/a/ids-"
    piped.write_text(json.dumps({"train": f"{command}train-{{000..002}}.tar", "val": f"{command}val-{{000..001}}.tar"}))
    refs = [ref, f"webdataset:{tmp_path}/a", f"webdataset:{listed}", f"webdataset:{piped}"]
    found = [load(r, val=8) for r in refs]
    assert len({d.identity["content"] for d in found}) == 1
    orders = [seen(d.train, 8, **EPOCH) for d in found]
    assert orders[1:] == orders[:1] * 3


def test_a_relative_pattern_is_looked_up_in_the_root(tmp_path: Path) -> None:
    train_and_val(tmp_path / "a")
    assert len(load("webdataset:a/ids-train-*.tar", root=tmp_path).test) == 12


def test_classes_may_have_names(tmp_path: Path) -> None:
    ref = train_and_val(tmp_path)
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\ndog\nelk\n")
    data = load(ref)
    assert (data.num_classes, data.class_names) == (5, ("ant", "bee", "cat", "dog", "elk"))
    few = load(ref, classes=("dog", "bee"), val=0)
    assert few.class_names == ("bee", "dog")
    assert sorted(sum(seen(few.train, 5), [])) == [i for i in range(48) if i % 4 in (1, 3)]
    assert {(i % 4, int(y)) for x, ys in few.train.batches(5) for i, y in zip(numbers(x), ys, strict=True)} == {
        (1, 0), (3, 1),
    }  # fmt: skip


def test_other_files_and_labels_in_json(tmp_path: Path) -> None:
    for name in ("train", "val"):
        with webdataset.TarWriter(str(tmp_path / f"{name}-0.tar")) as out:
            for i, suffix in enumerate(("JPEG", "webp", "jpg", "png") * 2):
                file = io.BytesIO()
                Image.new("RGB", (20, 30), (200, 30, 40)).save(file, {"jpg": "jpeg"}.get(suffix, suffix))
                out.write(
                    {"__key__": f"deep/{i}", "txt": "words", suffix: file.getvalue(), "json": {"label": i % 2, "w": 1}}
                )
    data = load_data(f"webdataset:{tmp_path}/train-0.tar", image_size=16, workers=0, normalize="none", val=2)
    x, y = next(data.test.batches(8))
    assert x.shape == (8, 3, 16, 16)
    assert y.tolist() == [0, 1] * 4
    torch.testing.assert_close(x.mean((0, 2, 3)) * 255, torch.tensor([200.0, 30, 40]), atol=3, rtol=0)


def test_shards_of_a_folder_give_the_folders_pictures(tmp_path: Path) -> None:
    """What docs/shards.md says about making shards."""
    make_folder(tmp_path / "photos", count=5)
    page = (Path(__file__).parents[2] / "docs" / "shards.md").read_text()
    program = next(p for p in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "ShardWriter" in p)
    (tmp_path / "shards").mkdir()
    exec(program.replace('"photos', f'"{tmp_path}/photos').replace('"shards', f'"{tmp_path}/shards'), {})
    found = load_data(f"webdataset:{tmp_path}/shards", image_size=16, workers=0, val=0)
    folder = load_data(f"imagefolder:{tmp_path}/photos", image_size=16, workers=0, val=0)

    def contents(split: Split) -> list[tuple[int, bytes]]:
        pairs = ((x, y) for xs, ys in split.batches(4) for x, y in zip(xs, ys, strict=True))
        return sorted((int(y), x.contiguous().numpy().tobytes()) for x, y in pairs)

    assert contents(found.train) == contents(folder.train)
    assert contents(found.test) == contents(folder.test)
    assert found.class_names == folder.class_names


# -- every sample once


class Numbered(ShardSplit):
    """Samples that are no pictures but four bytes, which say the number: decoding a million of them would take long."""

    @staticmethod
    def read(sample: Any) -> bytes:
        place, _ = sample
        return place.files.read(place.shard, place.begin, place.length)

    def change(self, augment: Augment | None) -> Any:
        return bytes

    @staticmethod
    def collate(elements: list[bytes]) -> list[int]:
        return [int.from_bytes(element, "little") for element in elements]

    def finish(self, batch: list[int]) -> list[int]:
        return batch


def numbered_shards(path: Path, sizes: Sequence[int]) -> None:
    """Shards with the number of each sample in place of its image; made from one, as tar files are blocks of 512."""
    template = io.BytesIO()
    with tarfile.open(fileobj=template, mode="w") as tar:
        for i in range(max(sizes)):
            for suffix, content in (("png", b"...."), ("cls", b"0")):
                info = tarfile.TarInfo(f"{i:08}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    blocks, first = np.frombuffer(template.getvalue(), np.uint8)[: max(sizes) * 2048].reshape(-1, 4, 512).copy(), 0
    for shard, size in enumerate(sizes):
        blocks[:size, 1, :4] = np.arange(first, first + size, dtype="<u4")[:, None].view(np.uint8)
        (path / f"ids-train-{shard:03}.tar").write_bytes(blocks[:size].tobytes() + bytes(1024))
        first += size


def count_epochs(path: Path, sizes: list[int], count: int, batch_size: int) -> None:
    """Three processes with two workers each: all samples once, in another order each epoch, the same after a resume."""
    assert sum(sizes) == count
    numbered_shards(path, sizes)
    make_shards(path, [4], "ids-val", classes=1)
    train = load(f"webdataset:{path}/ids-train-*.tar", workers=2, val=0).train
    split = Numbered(train.samples, 1, torch.device("cpu"), ((0.0,) * 3, (1.0,) * 3), 2, path)

    def epoch(number: int, start: int = 0) -> list[list[list[int]]]:
        how = {**EPOCH, "epoch": number, "start": start}
        return [list(split.batches(batch_size, **how, part=Part(i, 3))) for i in range(3)]

    first, second = epoch(0), epoch(1)
    for parts in (first, second):
        assert [len(part) for part in parts] == [count // batch_size] * 3
        assert sorted(i for part in parts for batch in part for i in batch) == list(range(count))
    assert first != second
    half = count // batch_size // 2
    assert epoch(1, start=half) == [part[half:] for part in second]


def test_every_sample_comes_once_an_epoch(tmp_path: Path) -> None:
    count_epochs(tmp_path, [71, 129] * 15, 3000, 300)


@pytest.mark.slow
def test_every_one_of_300_000_samples_comes_once_an_epoch(tmp_path: Path) -> None:
    try:
        count_epochs(tmp_path, [701, 1299] * 150, 300_000, 3000)
    finally:
        for shard in tmp_path.rglob("*.tar"):
            shard.unlink()


def test_processes_and_workers_change_nothing(tmp_path: Path) -> None:
    ref = train_and_val(tmp_path)
    alone = seen(load(ref).train, 8, **EPOCH)
    data = load(ref, workers=2)
    parts = [seen(data.train, 8, **EPOCH, part=Part(i, 3)) for i in range(3)]
    assert [sum(pieces, []) for pieces in zip(*parts, strict=True)] == alone
    shares = [seen(data.test, 4, part=Part(i, 3)) for i in range(3)]
    assert sorted(i for part in shares for batch in part for i in batch) == list(range(1000, 1012))


def test_order_mixes_neighbouring_shards_only() -> None:
    shards = torch.arange(200).repeat_interleave(50)
    order = mixed(shards, 10, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(10_000))
    places = [(shards[order] == shard).nonzero().flatten() for shard in range(200)]
    widest = max(int(p.max() - p.min()) for p in places)
    assert 350 < widest < 650  # ten shards of 50
    firsts = torch.tensor([int(p.min()) for p in places])
    assert not torch.equal(firsts.argsort(), torch.arange(200))


def test_nothing_is_read_for_what_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = load(train_and_val(tmp_path), val=0).train
    read: list[Any] = []
    original = type(split).read
    monkeypatch.setattr(type(split), "read", staticmethod(lambda sample: (read.append(sample), original(sample))[1]))
    rest = seen(split, 8, **EPOCH, start=4, part=Part(1, 2))
    assert len(read) == sum(map(len, rest)) == 8


# -- index and cache


def test_shards_are_indexed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = train_and_val(tmp_path / "a")
    before = load(ref).identity
    opened: list[Any] = []
    original = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *a, **k: (opened.append(k), original(*a, **k))[1])
    assert load(ref).identity == before
    assert not opened
    make_shards(tmp_path / "a", [11])  # another shard in place of the first
    opened.clear()
    assert len(load(ref, val=0).train) == 49
    assert len(opened) == 1


def test_piped_shards_are_fetched_once(tmp_path: Path) -> None:
    make_shards(tmp_path, [10, 25])
    log, listed = tmp_path / "log", tmp_path / "list.yaml"
    pipe = f"pipe:echo x >> {log}; cat {tmp_path}/ids-train-{{000..001}}.tar"
    listed.write_text(yaml.safe_dump({"train": pipe, "val": pipe}))
    data = load(f"webdataset:{listed}", workers=2, val=0)
    for epoch in range(2):
        assert sorted(sum(seen(data.train, 5, **EPOCH, epoch=epoch), [])) == list(range(35))
    assert log.read_text() == "x\n" * 2


def test_shards_are_fetched_before_they_are_wanted_but_not_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "WINDOW", 1)
    make_shards(tmp_path, [5] * 20)
    log, listed = tmp_path / "log", tmp_path / "list.yaml"
    pipe = f"pipe:echo x >> {log}; cat {tmp_path}/ids-train-{{000..019}}.tar"
    listed.write_text(yaml.safe_dump({"train": pipe, "val": pipe}))
    data = load(f"webdataset:{listed}", val=0)
    for path in (log, *(tmp_path / "cache" / "shards").glob("*.tar")):
        path.unlink()
    batches = data.train.batches(5, **EPOCH)
    first = numbers(next(batches)[0])
    until = time.monotonic() + 20
    while len(log.read_text().splitlines()) < 5 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.2)
    assert 5 <= len(log.read_text().splitlines()) <= 9
    assert sorted([*first, *sum((numbers(x) for x, _ in batches), [])]) == list(range(100))
    assert len(log.read_text().splitlines()) == 20
    assert not [thread for thread in threading.enumerate() if thread.name == "shards" and thread.is_alive()]


def test_the_cache_keeps_to_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for twice the shards that are mixed: each is fetched once an epoch."""
    monkeypatch.setattr(shards, "WINDOW", 3)
    monkeypatch.setattr(shardahead, "AHEAD", 1)
    make_shards(tmp_path, [5] * 20)
    size = (tmp_path / "ids-train-000.tar").stat().st_size
    monkeypatch.setenv("SENTEI_CACHE_GIB", str(6.5 * size / 2**30))
    log, listed = tmp_path / "log", tmp_path / "list.yaml"
    pipe = f"pipe:echo x >> {log}; cat {tmp_path}/ids-train-{{000..019}}.tar"
    listed.write_text(yaml.safe_dump({"train": pipe, "val": pipe}))
    data = load(f"webdataset:{listed}", val=0)
    log.unlink()
    assert sorted(sum(seen(data.train, 5, **EPOCH), [])) == list(range(100))
    assert 14 <= len(log.read_text().splitlines()) <= 20
    assert len(list((tmp_path / "cache" / "shards").glob("*.tar"))) == 6


# -- what is refused


def broken(path: Path, **sample: Any) -> str:
    make_shards(path, [3], "ids-val", classes=2)
    with webdataset.TarWriter(str(path / "ids-train-000.tar")) as out:
        out.write({"__key__": "one", "png": png(1), "cls": 0})
        out.write({"__key__": "two", **sample})
    return f"webdataset:{path}/ids-train-*.tar"


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ({"txt": "words", "cls": 1}, r"Sample two in .*000.tar has the files cls, txt; expected an image"),
        ({"png": png(2)}, r"Sample two in .*000.tar has no class number"),
        ({"png": png(2), "cls": "cat"}, "no class number"),
        ({"png": png(2), "json": {"label": 1.5}}, "no class number"),
        ({"png": png(2), "json": {"name": "cat"}}, "no class number"),
        ({"png": png(2), "cls": -1}, "no class number"),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_samples_without_image_or_label_are_named(
    tmp_path: Path, sample: dict[str, Any], said: str, workers: int
) -> None:
    with pytest.raises(DataError, match=said):
        load(broken(tmp_path, **sample), workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named(tmp_path: Path, workers: int) -> None:
    data = load(broken(tmp_path, png=b"no picture", cls=1), val=0, workers=workers)
    with pytest.raises(DataError, match=r"two\.png in .*ids-train-000\.tar cannot be read as an image"):
        list(data.train.batches(2))


def test_cut_and_compressed_shards_are_refused(tmp_path: Path) -> None:
    ref = train_and_val(tmp_path)
    shard = tmp_path / "ids-train-001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2 + 700])
    with pytest.raises(DataError, match=r"ids-train-001.tar cannot be read as an uncompressed tar file after sample"):
        load(ref)
    shard.write_bytes(b"\x1f\x8b" + b"x" * 2000)
    with pytest.raises(DataError, match="pipe:gzip -dc FILE"):
        load(ref)
    shard.write_bytes(whole)
    data = load(ref, val=0)
    shard.write_bytes(whole[:5000])
    with pytest.raises(DataError, match="ends early"):
        list(data.train.batches(8))


def test_what_cannot_be_found_or_fetched_is_named(tmp_path: Path) -> None:
    ref = train_and_val(tmp_path / "a")
    cases = {
        ref.replace("002", "003"): "There is no shard .*ids-train-003.tar",
        ref.replace("..002}", ""): "cannot be expanded|There is no shard",
        f"webdataset:{tmp_path}/a/ids-val-*.tar": "neither val nor test",
        f"webdataset:{tmp_path}/a/none": "There is no folder .*/a/none, nor a shard of that name",
        f"webdataset:{tmp_path}/b/ids-train-000.tar": "There is no folder .*/b, so no shard",
        ref.replace("002", "009"): "no shard .*ids-train-003.tar; 3 of the 10 that the pattern names are there",
        ref.replace("..", "."): "a range is written {000..146}",
        ref.replace("ids-train", "id-train"): "Did you mean ids-train-000.tar",
        f"webdataset:pipe:cat {tmp_path}/a/ids-train-000.tar": "neither val nor test",
        "webdataset:pipe:false": "could not be fetched",
        f"webdataset:pipe:cat {tmp_path}/a/none.tar": "could not be fetched",
    }
    for given, said in cases.items():
        with pytest.raises(DataError, match=said):
            load(given)
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    with pytest.raises(DataError, match="no .tar files for training. For a folder of images give imagefolder:"):
        load(f"webdataset:{tmp_path}/photos")
    (tmp_path / "a" / "other.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"other.tar says neither train, val nor test in its name"):
        load(f"webdataset:{tmp_path}/a")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "cannot be read"),
        ("- a.tar", "has list"),
        ("val: a.tar", "expected train"),
        ("train: a\nlabels: b", "labels"),
    ],
)
def test_lists_are_checked(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "list.yaml").write_text(text)
    with pytest.raises(DataError, match=said):
        load(f"webdataset:{tmp_path}/list.yaml")


def test_labels_beyond_the_names_are_refused(tmp_path: Path) -> None:
    ref = train_and_val(tmp_path)
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(DataError, match="train has label 3, but there are 2 classes"):
        load(ref)


def test_without_webdataset_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(DataError, match=r"pip install 'sentei\[webdataset\]'"):
        load(f"webdataset:{tmp_path}/ids-train-*.tar")


def test_a_part_of_each_class(tmp_path: Path) -> None:
    ref = train_and_val(tmp_path)
    data = load(ref, per_class=5, val=4)
    labels = torch.cat([y for split in (data.train, data.val) for _, y in split.batches(8)])
    assert np.bincount(labels).tolist() == [5] * 4
    assert len(data.test) == 12
