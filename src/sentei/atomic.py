"""Files that are whole or absent."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from sentei.errors import CheckpointError


def write_atomic(path: str | Path, payload: bytes) -> None:
    """Write the whole file or leave what was there: a temporary file beside it, fsync, then rename.

    Raises CheckpointError if the disk is full or the folder cannot be written; the old file is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, KeyboardInterrupt) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, KeyboardInterrupt):
            raise
        room = "free some space or " if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
        raise CheckpointError(
            f"could not write {path} ({len(payload) / 1e6:.1f} MB): {error.strerror or error}. "
            f"The previous file, if any, is untouched; {room}choose another folder"
        ) from error


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
