"""One process at a time: in a folder, where the others are refused, or at a file, for which they wait."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

from sentei.errors import CheckpointError, ConfigError

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


class FolderLock:
    """Keeps everyone else out of a folder until `release`; it ends with the process, however that ends.

    Makes the folder if there is none. ConfigError if someone is at work there, CheckpointError if it cannot be written.
    """

    held: ClassVar[set[Path]] = set()
    """What this process holds: the system's locks are between processes only."""

    def __init__(self, folder: Path) -> None:
        self.path = folder.resolve() / LOCK
        if self.path in self.held:
            raise ConfigError(f"this process is already working in {folder}; choose another run directory")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = _acquired(self.path)
        except BlockingIOError as error:
            raise ConfigError(
                f"another process is working in {folder}; wait until it has ended, or choose another run directory"
            ) from error
        except OSError as error:
            raise CheckpointError(f"Could not write into {folder}: {error.strerror or error}.") from error
        self.held.add(self.path)

    def release(self) -> None:
        self.held.discard(self.path)
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        os.close(self.file)


@contextmanager
def waiting(path: Path) -> Iterator[None]:
    """One process at a time; without locks in the file system, all at once."""
    with open(path, "wb") as file:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _acquired(path: Path) -> int:
    """An open file that holds the lock. Whoever held it before may have removed the file meanwhile: then once more."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            _lock(file)
            if os.fstat(file).st_ino == path.stat().st_ino:
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(file: int) -> None:
    if fcntl is None:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise BlockingIOError(*error.args) from error
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a file system without locks
            raise
