"""The run directory: what was asked, what happened, what came out, and how to go on after a kill."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]

from sentei.atomic import write_atomic
from sentei.errors import CheckpointError, ConfigError
from sentei.train.checkpoint import load_checkpoint, save_checkpoint
from sentei.train.journal import Journal

CONFIG, JOURNAL, SUMMARY, LOCK = "config.yaml", "journal.jsonl", "summary.json", ".lock"
NETWORK = ("model.safetensors", "plan.json")
CURVE = "curve"
"""Folder of the networks that a method passed on its way, one folder each."""
SUPERNETS = tuple(f"supernet-{rule}.safetensors" for rule in ("stagewise", "sandwich", "random-path"))
OURS = (SUMMARY, JOURNAL, *NETWORK, *SUPERNETS, "gammas.png", CONFIG)
"""The files of a run; the config goes last when a run is cleared, so that a kill leaves a resumable one."""


class Run:
    """A run directory. Work is done in named phases, each of which is done once and then read back.

    >>> run = Run.open("runs/x", {"method": "l1"})  # doctest: +SKIP
    >>> run.once("scores", lambda: {"l1": [1.0, 2.0]})  # doctest: +SKIP
    >>> run.finish({"accuracy": 0.91})  # doctest: +SKIP

    A run without a folder keeps nothing.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.lock = None if self.folder is None else _lock(self.folder)
        self.journal = None if self.folder is None else Journal(self.folder / JOURNAL)

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
        build model and data again. ConfigError if the folder holds a finished run, another run, or other files.
        """
        if folder is None:
            return cls(None)
        path, plain = Path(folder), json.loads(json.dumps(config))
        if overwrite:
            clear(path)
        if is_finished(path):
            raise ConfigError(finished_text(path))
        if has_progress(path):
            _check_same(path, read_config(path).get("resolved", {}), plain)
        elif not is_started(path) and path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(f"{path} is not empty and holds no sentei run; choose another run directory")
        else:
            write_config(path, {"command": dict(command) if command else None, "resolved": plain})
        return cls(path)

    def once(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a phase: computed and stored, or read back if it is already there.

        Results are dicts of tensors and plain values. Their plain numbers and texts also go into the journal.
        """
        if self.folder is None:
            return compute()
        file = self.folder / f"{name}.ckpt"
        if file.exists():
            result = load_checkpoint(file)
        else:
            started = time.perf_counter()
            result = compute()
            result.setdefault("seconds", {name: round(time.perf_counter() - started, 3)})
            save_checkpoint(file, result)
        self.record(name, result)
        return result

    def record(self, phase: str, result: Mapping[str, Any]) -> None:
        """Note a finished phase in the journal, once."""
        if self.journal is None or any(r.get("phase") == phase for r in self.journal.records()):
            return
        plain = {k: v for k, v in result.items() if isinstance(v, (int, float, str, dict)) and k not in BULKY}
        self.journal.append({"event": "phase", "phase": phase, **plain})

    def discard_if_empty(self) -> None:
        """Leave nothing behind of a run that was refused before it stored anything."""
        if self.folder is not None and not has_progress(self.folder):
            clear(self.folder)
            with suppress(OSError):
                self.folder.rmdir()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, which marks the run as finished, and remove the checkpoints that led to it."""
        if self.folder is None:
            return
        write_atomic(self.folder / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
        remove_checkpoints(self.folder)
        (self.folder / LOCK).unlink(missing_ok=True)
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


def _lock(folder: Path) -> int | None:
    """Keep other processes out of a run while this one lives; ConfigError if one is at work there.

    Returns the open file that holds the lock.
    """
    if fcntl is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise CheckpointError(f"Could not write into {folder}: {error.strerror or error}.") from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        raise ConfigError(
            f"another process is working in {folder}; wait until it has ended, or choose another run directory"
        ) from error
    return file


BULKY = ("model", "plan")


def is_started(folder: str | Path) -> bool:
    return (Path(folder) / CONFIG).is_file()


def has_progress(folder: str | Path) -> bool:
    """Whether a begun run has stored anything; one that has not, a refused budget for instance, may be replaced."""
    journal = Path(folder) / JOURNAL
    stored = any(Path(folder).glob("*.ckpt")) or (journal.is_file() and journal.stat().st_size > 0)
    return is_started(folder) and stored


def is_finished(folder: str | Path) -> bool:
    return is_started(folder) and (Path(folder) / SUMMARY).is_file()


def refuse_existing(folder: str | Path) -> None:
    """ConfigError if a run was finished or begun in this folder; the text says what to do."""
    if is_finished(folder):
        raise ConfigError(finished_text(folder))
    if has_progress(folder):
        raise ConfigError(
            f"{folder} holds a half-finished run. Go on with:  sentei resume {folder}  "
            "(or start again with --overwrite, or choose another --run)"
        )


def finished_text(folder: str | Path) -> str:
    return f"{folder} holds a finished run. Choose another run directory, or replace it (--overwrite, overwrite=True)"


def clear(folder: str | Path) -> None:
    """Remove a run's files and nothing else."""
    path = Path(folder)
    if is_started(path):
        (path / SUMMARY).unlink(missing_ok=True)
        remove_checkpoints(path)
        remove_curve(path)
        for name in (*OURS, LOCK):
            (path / name).unlink(missing_ok=True)


def remove_checkpoints(folder: Path) -> None:
    for pattern in ("*.ckpt", ".*.tmp"):
        for file in folder.glob(pattern):
            file.unlink(missing_ok=True)


def remove_curve(folder: Path) -> None:
    """Remove the networks on the way, and nothing else."""
    for passed in (folder / CURVE).glob("*"):
        for name in NETWORK:
            (passed / name).unlink(missing_ok=True)
        with suppress(OSError):
            passed.rmdir()
    with suppress(OSError):
        (folder / CURVE).rmdir()


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    text = yaml.safe_dump({"sentei": version(), **config}, sort_keys=False, allow_unicode=True)
    write_atomic(folder / CONFIG, text.encode())


def version() -> str:
    """The version of sentei that is running."""
    try:
        return metadata.version("sentei")
    except metadata.PackageNotFoundError:
        return "unknown"


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config of a run; CheckpointError if there is none or it is not one."""
    file = Path(folder) / CONFIG
    try:
        config = yaml.safe_load(file.read_text())
    except OSError as error:
        raise CheckpointError(f"{folder} is not a run directory: cannot read {file} ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    if not isinstance(config, dict) or "resolved" not in config:
        raise CheckpointError(f"{file} was not written by sentei: it has no section 'resolved'")
    return config


def read_summary(folder: str | Path) -> dict[str, Any]:
    """The summary of a finished run; CheckpointError if the run is unfinished or the file is damaged."""
    file = Path(folder) / SUMMARY
    if not file.is_file():
        read_config(folder)
        raise CheckpointError(f"the run in {folder} is not finished. Go on with:  sentei resume {folder}")
    try:
        return dict(json.loads(file.read_text()))
    except (ValueError, OSError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error


def _check_same(folder: Path, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    for key in dict.fromkeys([*stored, *given]):
        if stored.get(key) != given.get(key):
            raise ConfigError(
                f"{folder} holds a half-finished run with another {key}: there {stored.get(key)!r}, now "
                f"{given.get(key)!r}. Go on with the same settings, or choose another run directory"
            )
