"""Where each image of a tar shard begins, how long it is and what its label says; found once and kept."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sentei.atomic import write_atomic
from sentei.bars import live_bar
from sentei.data.samples import Broken
from sentei.data.shardfiles import ShardFiles, cache_folder, key_of
from sentei.data.shardlist import is_remote
from sentei.errors import CheckpointError, DataError
from sentei.extras import required
from sentei.lock import waiting

IMAGES = ("jpg", "jpeg", "png", "webp")
LABELS = ("label", "cls", "class")
"""Where a sample's json may hold the class number."""
META = re.compile(r"__[^/]*__($|/)")
"""What webdataset takes for no sample."""


@dataclass(frozen=True)
class Index:
    """Rows of begin, length and label of each image, int64 N,3, and the size of the shard, in bytes."""

    rows: Tensor
    size: int


def indices_of(files: ShardFiles, workers: int, told: str) -> list[Index]:
    """The index of every shard, from the cache where it is; one process reads the others, with a bar."""
    found = _all_kept(files)
    if found is None:
        with waiting(cache_folder("index") / f"{key_of(*files.sources)}.lock"):
            _read_missing(files, workers, told)
        found = _all_kept(files)
    if found is None:
        raise DataError(f"The shards of {told} were changed while they were indexed. Start again.")
    return found


def _all_kept(files: ShardFiles) -> list[Index] | None:
    found = [index for index in map(_kept, files.sources) if index is not None]
    return found if len(found) == len(files.sources) else None


def _read_missing(files: ShardFiles, workers: int, told: str) -> None:
    missing = [number for number, source in enumerate(files.sources) if _kept(source) is None]
    loader = DataLoader(_Shards(files, missing), batch_size=None, num_workers=min(workers, len(missing) // 4))
    bar = live_bar(True, counted=True)
    with bar:
        task = bar.add_task(f"Indexing {told}", total=len(missing))
        for broken in loader:
            if broken is not None:
                raise DataError(broken.text)
            bar.advance(task)


class _Shards(Dataset[Any]):
    def __init__(self, files: ShardFiles, numbers: Sequence[int]) -> None:
        self.files, self.numbers = files, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> Broken | None:
        source = self.files.sources[self.numbers[place]]
        try:
            path = self.files.path(self.numbers[place])
            _keep(source, Index(indexed(path, source), path.stat().st_size))
        except DataError as error:
            return Broken(str(error))
        return None


def indexed(path: Path, source: str) -> Tensor:
    """Begin, length and label of each image of a tar file. DataError for what is none, or not of images with labels."""
    rows, known = [], ""
    try:
        with open(path, "rb") as file:
            for key, members in _samples(file):
                known = key
                rows.append(_row(file, source, key, members))
    except (tarfile.TarError, EOFError, OSError) as error:
        after = f" after sample {known}" if known else ""
        raise DataError(
            f"{source} cannot be read as an uncompressed tar file{after} ({type(error).__name__}: {error}). Make it "
            "anew; a compressed one can be given as  pipe:gzip -dc FILE"
        ) from error
    if not rows:
        raise DataError(f"{source} holds no samples.")
    return torch.tensor(rows, dtype=torch.int64)


Members = dict[str, tuple[int, int]]


def _samples(file: BinaryIO) -> Iterator[tuple[str, Members]]:
    """Key of each sample and begin and length of its files by suffix: files of the same name lie together."""
    required("webdataset", "webdataset", "data in shards", DataError)
    from webdataset.tariterators import base_plus_ext

    current, members = None, Members()
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would keep them all
            key, suffix = base_plus_ext(member.name)
            if not member.isreg() or key is None or META.match(member.name):
                continue
            if key != current:
                if current is not None:
                    yield current, members
                current, members = key, Members()
            members[suffix.lower()] = (member.offset_data, member.size)
    if current is not None:
        yield current, members


def _row(file: BinaryIO, source: str, key: str, members: Members) -> tuple[int, int, int]:
    image = next((members[suffix] for suffix in IMAGES if suffix in members), None)
    if image is None:
        raise DataError(
            f"Sample {key} in {source} has the files {', '.join(members)}; expected an image: {', '.join(IMAGES)}."
        )
    return *image, _label(file, source, key, members)


def _label(file: BinaryIO, source: str, key: str, members: Members) -> int:
    suffix = next((s for s in ("cls", "json") if s in members), None)
    if suffix is not None:
        begin, length = members[suffix]
        back = file.tell()
        file.seek(begin)
        text = file.read(length)
        file.seek(back)
        with suppress(ValueError, TypeError, KeyError, StopIteration):
            label = int(text) if suffix == "cls" else _in_json(json.loads(text))
            if label >= 0:
                return label
    raise DataError(
        f"Sample {key} in {source} has no class number. Expected KEY.cls with a number from 0, or KEY.json with one as "
        f"{' or '.join(map(repr, LABELS))}; it has the files {', '.join(members)}."
    )


def _in_json(content: dict[str, Any]) -> int:
    value = next(content[name] for name in LABELS if name in content)
    if int(value) != value:
        raise ValueError(value)
    return int(value)


# -- kept from one start to the next


def _file(source: str) -> Path:
    """By the address of what is fetched; of files also by size and time, so that one made anew is read again."""
    if is_remote(source):
        return cache_folder("index") / f"{key_of(source)}.npz"
    try:
        stamp = os.stat(source)
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error}.") from error
    return cache_folder("index") / f"{key_of(os.path.realpath(source), stamp.st_size, stamp.st_mtime_ns)}.npz"


def _kept(source: str) -> Index | None:
    with suppress(OSError, ValueError, KeyError, EOFError), np.load(_file(source), allow_pickle=False) as content:
        return Index(torch.from_numpy(content["rows"]), int(content["size"]))
    return None


def _keep(source: str, index: Index) -> None:
    content = BytesIO()
    np.savez(content, rows=index.rows.numpy(), size=np.array(index.size))
    try:
        write_atomic(_file(source), content.getvalue())
    except CheckpointError as error:
        raise DataError(f"The index of {source} cannot be written: {error}. Name another folder for it in "
                        "SENTEI_CACHE.") from error  # fmt: skip
