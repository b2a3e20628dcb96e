"""Tar files to read at any place: where they lie, or fetched into a cache that the processes of a machine share."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sentei.data.shardlist import is_remote
from sentei.errors import DataError
from sentei.extras import required
from sentei.lock import waiting

FOLDER, LIMIT = "SENTEI_CACHE", "SENTEI_CACHE_GIB"
"""Environment variables: where fetched shards and indices are kept, and how much of the former."""
HEADER = 512


def cache_folder(kind: str) -> Path:
    """A folder below SENTEI_CACHE, or below sentei in the user's own cache; made if there is none."""
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sentei"
    folder = Path(os.environ.get(FOLDER) or own) / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made ({error}). Name another folder for it in {FOLDER}.") from error
    return folder


def key_of(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode("utf-8", "surrogateescape")).hexdigest()[:32]


@dataclass(frozen=True)
class ShardFiles:
    """Shards by number. Those that a command or an address gives are fetched whole when they are first read."""

    sources: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    """In bytes, where they are known: what is fetched again must have the same."""

    def path(self, number: int) -> Path:
        """Where a shard can be read now."""
        source = self.sources[number]
        return fetched(source, self.sizes[number] if self.sizes else None) if is_remote(source) else Path(source)

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Some bytes of a shard."""
        for last in (False, False, True):
            try:
                with open(self.path(number), "rb", buffering=0) as file:
                    file.seek(offset)
                    found = file.read(size)
                break
            except FileNotFoundError as error:  # another process made room in the cache
                if last or not is_remote(self.sources[number]):
                    raise DataError(f"{self.sources[number]} is not there any more.") from error
            except OSError as error:
                raise DataError(f"{self.sources[number]} cannot be read: {error}.") from error
        if len(found) < size:
            raise DataError(f"{self.sources[number]} ends early: it is shorter than when it was indexed. {_ANEW}")
        return found

    def member(self, number: int, offset: int) -> str:
        """The name of the file whose content begins at a place, and its shard's; for messages."""
        with suppress(DataError, tarfile.TarError):
            header = self.read(number, offset - HEADER, HEADER)
            return f"{tarfile.TarInfo.frombuf(header, 'utf-8', 'surrogateescape').name} in {self.sources[number]}"
        return f"the image at byte {offset} of {self.sources[number]}"


_ANEW = "Remove the folder index of sentei's cache if the shards have been made anew."


def fetched(source: str, size: int | None = None) -> Path:
    """A shard's copy in the cache, fetched if it is not there: by one process, while the others wait."""
    path = cache_folder("shards") / f"{key_of(source)}.tar"
    if not path.exists():
        with waiting(path.with_suffix(".lock")):
            if not path.exists():
                _fetch(source, path)
                _make_room(path)
    with suppress(OSError):  # another process may make room just now
        os.utime(path)
        if size is not None and path.stat().st_size != size:
            raise DataError(
                f"{source} has {path.stat().st_size:,} bytes, but had {size:,} when it was indexed. {_ANEW}"
            )
    return path


def _fetch(source: str, path: Path) -> None:
    gopen = required("webdataset", "webdataset", "data in shards", DataError).gopen
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        stream = gopen(source)
        with open(part, "wb") as file:
            shutil.copyfileobj(stream, file, 2**20)
        stream.close()  # tells whether the command failed
        if part.stat().st_size == 0:
            raise OSError("it gave nothing")
        os.replace(part, path)
    except Exception as error:  # commands, networks and disks fail in many ways
        raise DataError(
            f"{source} could not be fetched into {path.parent} ({type(error).__name__}: {error}). Try the command or "
            f"address by hand; {FOLDER} names another folder, {LIMIT} limits its size."
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _make_room(newest: Path) -> None:
    """Remove the shards that were not used for longest, if there are more bytes than may be kept."""
    given = os.environ.get(LIMIT)
    if given is None:
        return
    try:
        left = float(given) * 2**30
    except ValueError as error:
        raise DataError(f"{LIMIT} is {given!r}; expected a number of GiB.") from error
    found = []
    for path in newest.parent.glob("*.tar"):
        with suppress(OSError):
            found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    for _, size, path in sorted(found, reverse=True):
        left -= size
        if left < 0 and path != newest:
            path.unlink(missing_ok=True)
