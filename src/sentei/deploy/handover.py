"""Files that appear all together or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sentei.sealed import read_json

BLOCK = 2**20


@contextmanager
def workshop(folder: Path) -> Iterator[Path]:
    """A hidden folder beside what will be written, gone at the end whatever happens."""
    folder.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=".export-", suffix=".tmp", dir=folder))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def hand_over(files: Sequence[Path], folder: Path) -> list[Path]:
    """Move finished files into a folder of the same disk, over those of the same names, which come back on an error."""
    old = files[0].parent / "old"
    old.mkdir()
    moved: list[Path] = []
    try:
        for file in files:
            target = folder / file.name
            if target.exists():
                os.replace(target, old / file.name)
            moved.append(target)
            os.replace(file, target)
    except BaseException:
        for target in moved:
            target.unlink(missing_ok=True)
        for file in old.iterdir():
            os.replace(file, folder / file.name)
        raise
    return moved


def files_of(sidecar: Path) -> set[str]:
    """Names of the files that an earlier export into the same place consists of."""
    record = (read_json(sidecar.read_bytes()) if sidecar.is_file() else None) or {}
    return {Path(file["name"]).name for file in record.get("files", ())}


def described(files: Sequence[Path]) -> list[dict[str, object]]:
    """Name, size and checksum of each."""
    return [{"name": f.name, "bytes": f.stat().st_size, "sha256": _sha256(f)} for f in files]


def _sha256(file: Path) -> str:
    sha = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(BLOCK):
            sha.update(block)
    return sha.hexdigest()
