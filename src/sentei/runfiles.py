"""The files of a run directory: which there are, what state they are in, and how they are read."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from sentei.atomic import write_atomic
from sentei.errors import CheckpointError, ConfigError
from sentei.lock import LOCK
from sentei.schema import SUMMARIES, Config, Summary, validated, with_metric
from sentei.sealed import is_sealed_yaml, read_json, sealed_yaml

CONFIG, JOURNAL, SUMMARY, BENCH = "config.yaml", "journal.jsonl", "summary.json", "bench.json"
NETWORK = ("model.safetensors", "plan.json")
CURVE = "curve"
"""Folder of the networks that a method passed on its way, one folder each."""
SCALARS = "tensorboard"
"""Folder of event files for TensorBoard."""
SUPERNETS = tuple(f"supernet-{rule}.safetensors" for rule in ("stagewise", "sandwich", "random-path"))
REPORT = "report.html"
"""What `sentei report` writes unless told otherwise."""
OURS = (SUMMARY, JOURNAL, *NETWORK, *SUPERNETS, "gammas.png", "fidelity.svg", BENCH, REPORT, CONFIG)
"""The files of a run; the config goes last when a run is cleared, so that a kill leaves a resumable one."""
SIDECAR = ".export.json"
"""How files end that describe exported ones."""
REPLACED = ".replaced"
"""Where the files of a run wait that is being overwritten, until the new one has stored something."""


def is_started(folder: str | Path) -> bool:
    return (Path(folder) / CONFIG).is_file()


def has_progress(folder: str | Path) -> bool:
    """Whether a begun run has stored anything; one that has not, a refused budget for instance, may be replaced."""
    journal = Path(folder) / JOURNAL
    stored = any(Path(folder).glob("*.ckpt")) or (journal.is_file() and journal.stat().st_size > 0)
    return is_started(folder) and stored


def is_finished(folder: str | Path) -> bool:
    return is_started(folder) and (Path(folder) / SUMMARY).is_file()


def is_half_cleaned(folder: str | Path) -> bool:
    """Whether a finished run was killed before it removed its checkpoints. Its command may be given again."""
    return is_finished(folder) and any(Path(folder).glob("*.ckpt"))


def clean_up(folder: str | Path) -> None:
    """Remove what a finished run no longer needs."""
    forget_replaced(Path(folder))
    remove_checkpoints(Path(folder))


def is_ours(folder: str | Path) -> bool:
    """Whether a folder holds a run, or nothing but what a kill can leave of one that had not begun."""
    left = [p.name for p in Path(folder).iterdir() if p.name not in (LOCK, REPLACED) and not _is_temporary(p)]
    return is_started(folder) or not left


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")


def refuse_finished(folder: str | Path) -> None:
    """ConfigError if a folder holds a finished run."""
    if is_finished(folder) and not is_half_cleaned(folder):
        raise ConfigError(
            f"{folder} holds a finished run. Choose another run directory, or replace it (--overwrite, overwrite=True)"
        )


def resume_command(folder: str | Path) -> str:
    """What to type to go on, quoted for the shell."""
    return f"sentei resume {shlex.quote(str(folder))}"


# -- what goes


def clear(folder: str | Path) -> None:
    """Remove a run's files and nothing else."""
    path = Path(folder)
    if is_started(path):
        (path / SUMMARY).unlink(missing_ok=True)
        remove_checkpoints(path)
        remove_curve(path)
        remove_scalars(path)
        for name in (*exported(path), *OURS):
            (path / name).unlink(missing_ok=True)


def remove_checkpoints(folder: Path) -> None:
    for file in folder.glob("*.ckpt"):
        file.unlink(missing_ok=True)
    sweep(folder)


def sweep(folder: Path) -> None:
    """Remove temporary files that a kill has left, among the networks on the way too."""
    for place in (folder, *(folder / CURVE).glob("*")):
        for file in filter(_is_temporary, place.glob(".*")):
            if file.is_dir():
                shutil.rmtree(file, ignore_errors=True)
            else:
                file.unlink(missing_ok=True)


def remove_curve(folder: Path) -> None:
    """Remove the networks on the way, and nothing else."""
    sweep(folder)
    for passed in (folder / CURVE).glob("*"):
        for name in NETWORK:
            (passed / name).unlink(missing_ok=True)
        with suppress(OSError):
            passed.rmdir()
    with suppress(OSError):
        (folder / CURVE).rmdir()


def remove_scalars(folder: Path) -> None:
    """Remove event files, and nothing else."""
    for file in (folder / SCALARS).glob("events.out.tfevents.*"):
        file.unlink(missing_ok=True)
    with suppress(OSError):
        (folder / SCALARS).rmdir()


# -- what is replaced


def set_aside(folder: Path) -> None:
    """Move a run's files away, so that they can come back."""
    if not is_started(folder):
        return
    forget_replaced(folder)
    (folder / REPLACED).mkdir()
    for file in [*_files(folder), folder / CONFIG]:
        os.replace(file, folder / REPLACED / file.name)


def bring_back(folder: Path) -> None:
    """Undo `set_aside`, unless what replaces the run has got somewhere. A kill in the middle of either does no harm."""
    complete = (folder / REPLACED / CONFIG).exists()
    if (folder / REPLACED).is_dir() and not (complete and has_progress(folder)):
        for file in [*(p for p in (folder / REPLACED).iterdir() if p.name != CONFIG), folder / REPLACED / CONFIG]:
            if file.exists():
                os.replace(file, folder / file.name)
        (folder / REPLACED).rmdir()


def forget_replaced(folder: Path) -> None:
    """Remove what was set aside."""
    replaced = folder / REPLACED
    if replaced.is_dir():
        clear(replaced)
        with suppress(OSError):
            replaced.rmdir()


def exported(folder: Path) -> list[str]:
    """Names of the files that `sentei export` wrote into a run's folder."""
    names = []
    for sidecar in folder.glob(f"*{SIDECAR}"):
        described = read_json(sidecar.read_bytes()) or {}
        names += [Path(str(file["name"])).name for file in described.get("files", ())] + [sidecar.name]
    return names


def _files(folder: Path) -> Iterator[Path]:
    """What belongs to a run, apart from its config."""
    checkpoints = (p.name for p in folder.glob("*.ckpt"))
    names = [CURVE, SCALARS, *exported(folder), *(name for name in OURS if name != CONFIG), *checkpoints]
    return (folder / name for name in names if (folder / name).exists())


# -- what is read and written


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    text = yaml.safe_dump({"sentei": version(), **config}, sort_keys=False, allow_unicode=True)
    write_atomic(folder / CONFIG, sealed_yaml(text))


def version() -> str:
    """The version of sentei that is running."""
    try:
        return metadata.version("sentei")
    except metadata.PackageNotFoundError:
        return "unknown"


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config of a run; CheckpointError if there is none, or it is not as it was written."""
    file = Path(folder) / CONFIG
    payload = _read(file, folder)
    try:
        config = yaml.safe_load(payload)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    if not isinstance(config, dict) or "resolved" not in config:
        raise CheckpointError(f"{file} is damaged, or was not written by sentei: it has no section 'resolved'")
    if not is_sealed_yaml(payload):
        raise CheckpointError(_altered(file))
    validated(Config, config, file)
    return config


def read_summary(folder: str | Path) -> dict[str, Any]:
    """The summary of a finished run; CheckpointError if the run is unfinished or the file is damaged."""
    file = Path(folder) / SUMMARY
    if not file.is_file():
        read_config(folder)
        raise CheckpointError(f"the run in {folder} is not finished. Go on with:  {resume_command(folder)}")
    summary = read_json(_read(file, folder))
    if summary is None:
        raise CheckpointError(_altered(file))
    summary = with_metric(summary)
    validated(SUMMARIES[validated(Summary, summary, file).verb], summary, file)
    return summary


def _altered(file: Path) -> str:
    return f"{file} is damaged or was changed afterwards: its checksum does not match. Copy it again from its origin"


def _read(file: Path, folder: str | Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder} is not a run directory: cannot read {file} ({error.strerror})") from error
