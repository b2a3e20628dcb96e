"""The run directory at work: what was asked, what happened, what came out, and how to go on after a kill."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from sentei.atomic import write_atomic
from sentei.distributed import agreed, decided, starts
from sentei.errors import CheckpointError, ConfigError
from sentei.lock import FolderLock
from sentei.runfiles import (
    JOURNAL,
    SUMMARY,
    bring_back,
    clean_up,
    clear,
    has_progress,
    is_half_cleaned,
    is_ours,
    read_config,
    refuse_finished,
    set_aside,
    sweep,
    write_config,
)
from sentei.sealed import sealed_json
from sentei.train.checkpoint import load_checkpoint, save_checkpoint
from sentei.train.journal import Journal

BULKY = ("model", "plan", "sparsifier")
"""Entries of a phase's result that the journal leaves out."""


class JustFinished(ConfigError):
    """The run that was asked for had been killed in its last moment: only cleaning up was left to do."""


def begins_anew(folder: Path) -> bool:
    """Whether a run may be overwritten: not where it stands half-finished and its processes were started again."""
    return starts() == 1 or not has_progress(folder)


class Run:
    """A run directory. Work is done in named phases, each of which is done once and then read back.

    >>> with Run.open("runs/x", {"method": "l1"}) as run:  # doctest: +SKIP
    ...     run.once("scores", lambda: {"l1": [1.0, 2.0]})
    ...     run.finish({"accuracy": 0.91})

    It belongs to this process until it is closed. A run without a folder keeps nothing.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.lock = None if self.folder is None else FolderLock(self.folder)
        self.journal: Journal | None = None

    @classmethod
    def open(
        cls,
        folder: str | Path | None,
        config: Mapping[str, Any],
        command: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> Run:
        """Start a run, or go on with a half-finished one that has the same config.

        `config` is everything that decides the result, resolved; `command` is what `sentei resume` needs to
        build model and data again. ConfigError if the folder holds a finished run, another run, or other files, or if
        another process works there. Of several processes that share the work, the first has the folder; the others
        keep nothing. With `overwrite` what it holds is replaced, and comes back if nothing is stored.
        """
        opened: list[Run] = []
        decided(lambda: opened.append(cls._opened(folder, config, command, overwrite)))
        return opened[0] if opened else cls(None)

    @classmethod
    def _opened(
        cls,
        folder: str | Path | None,
        config: Mapping[str, Any],
        command: Mapping[str, Any] | None,
        overwrite: bool,
    ) -> Run:
        if folder is None:
            return cls(None)
        path = Path(folder)
        overwrite = overwrite and begins_anew(path)
        _refuse_foreign(path)
        if not overwrite:
            refuse_finished(path)
        run = cls(path)  # nothing is touched before the lock is held
        try:
            run._begin(path, json.loads(json.dumps(config)), command, overwrite)
        except OSError as error:
            run.close()
            raise CheckpointError(f"Could not change {error.filename or path}: {error.strerror or error}.") from error
        except BaseException:
            run.close()
            raise
        return run

    def _begin(self, path: Path, config: dict[str, Any], command: Mapping[str, Any] | None, overwrite: bool) -> None:
        sweep(path)
        bring_back(path)  # what was to be replaced by a process that was killed before it began
        if overwrite:
            set_aside(path)
        refuse_finished(path)
        asked = {"command": json.loads(json.dumps(command)) if command else None, "resolved": config}
        if has_progress(path):
            stored = read_config(path)
            _refuse_other(path, stored["resolved"], config)
            if is_half_cleaned(path):
                clean_up(path)
                raise JustFinished(f"{path} holds this very run, finished; what it no longer needed was removed")
            if asked["command"] != stored["command"]:  # files have moved
                write_config(path, asked)
        else:
            write_config(path, asked)
        self.journal = Journal(path / JOURNAL)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, (Exception, KeyboardInterrupt)):
            self._discard_if_empty()
        self.close()

    def once(self, name: str, compute: Callable[[], dict[str, Any]], together: bool = False) -> dict[str, Any]:
        """The result of a phase: computed and stored, or read back if it is already there.

        Results are dicts of tensors and plain values. Their plain numbers and texts also go into the journal. Of
        several processes the first computes alone, and the others get its result; with `together` all of them compute,
        sharing what can be shared.
        """
        result = decided(lambda: self._stored(name))
        if result is None:
            started = time.perf_counter()
            result = agreed(compute()) if together else decided(compute)
            if self.folder is not None:
                result.setdefault("seconds", {name: round(time.perf_counter() - started, 3)})
                save_checkpoint(self.folder / f"{name}.ckpt", result)
        self.record(name, result)
        return result

    def _stored(self, name: str) -> dict[str, Any] | None:
        file = None if self.folder is None else self.folder / f"{name}.ckpt"
        return None if file is None or not file.exists() else load_checkpoint(file)

    def record(self, phase: str, result: Mapping[str, Any]) -> None:
        """Note a finished phase in the journal, once."""
        if self.journal is None or any(r.get("phase") == phase for r in self.journal.records()):
            return
        plain = {k: v for k, v in result.items() if isinstance(v, (int, float, str, dict)) and k not in BULKY}
        self.journal.append({"event": "phase", "phase": phase, **plain})

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, which marks the run as finished, and remove the checkpoints that led to it."""
        if self.folder is None:
            return
        write_atomic(self.folder / SUMMARY, sealed_json(summary))
        clean_up(self.folder)
        self.close()

    def close(self) -> None:
        """Let others in. A folder in which nothing is left goes too."""
        if self.lock is not None and self.folder is not None:
            self.lock.release()
            self.lock = None
            with suppress(OSError):
                self.folder.rmdir()

    def _discard_if_empty(self) -> None:
        """Leave nothing behind of a run that ended before it stored anything, and bring back what it was to replace."""
        if self.folder is not None and self.lock is not None and not has_progress(self.folder):
            clear(self.folder)
            bring_back(self.folder)


def _refuse_foreign(path: Path) -> None:
    """ConfigError for a file, and for a folder with files that are not those of a run."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file; choose another run directory")
    if path.is_dir() and not is_ours(path):
        raise ConfigError(f"{path} is not empty and holds no sentei run; choose another run directory")


HINTS = {
    "threads": "The last bits of every result depend on the number of threads: set OMP_NUM_THREADS={stored}",
    "worker_threads": "The last bits of every result depend on the threads of a worker: take as many workers as then",
    "code": "The model's file was changed since then: restore it",
    "data.content": "These are other images or labels",
    "base_sha256": "The network has other weights",
}


def _refuse_other(folder: Path, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """ConfigError, naming the first difference, if a half-finished run is another one than is asked for."""
    if "threads" not in stored or "threads" not in given:  # several processes, of which there may be others now
        stored, given = ({k: v for k, v in side.items() if k != "threads"} for side in (stored, given))
    different = next(differences(stored, given), None)
    if different is None:
        return
    name, before, now = different
    hint = HINTS.get(name, "Go on with the same settings").format(stored=before)
    raise ConfigError(
        f"{folder} holds a half-finished run with other settings: {name} is {before!r} there, {now!r} now. {hint}, or "
        "choose another run directory (--overwrite, overwrite=True starts again)"
    )


def differences(stored: Any, given: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(stored, Mapping) and isinstance(given, Mapping):
        for key in dict.fromkeys([*stored, *given]):
            yield from differences(stored.get(key), given.get(key), f"{name}.{key}" if name else str(key))
    elif stored != given:
        yield name, stored, given
