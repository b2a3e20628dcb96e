"""The command that a run was made with, as its config.yaml has it, and whose code may run because of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sentei.cli.options import DataOptions, Dense, is_code
from sentei.errors import ConfigError, SenteiError
from sentei.runfiles import CONFIG, is_started, read_config, resume_command
from sentei.schema import validated
from sentei.train import Recipe


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A command with every path absolute."""

    verb: Literal["train", "prune", "fidelity"]
    model: str
    dense: Dense
    data: DataOptions
    recipe: Recipe
    options: Mapping[str, Any] = field(default_factory=dict)
    """The command's own options."""
    how: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the method."""

    @property
    def code(self) -> list[str]:
        """The functions of users' files that it takes to build model and data again."""
        named = [self.model, self.dense.ref, self.data.data, self.data.task]
        return list(dict.fromkeys(ref for ref in named if ref is not None and is_code(ref)))


def saved_command(folder: str | Path) -> Saved:
    """The command that a run was made with; ConfigError if it was made from Python."""
    command = read_config(folder)["command"]
    if command is None:
        raise ConfigError(
            f"{folder} was made from Python, so the command line cannot rebuild its model and data. "
            "Call the same function again with the same arguments to go on, or sentei.load to use the result"
        )
    return validated(Saved, command, Path(folder) / CONFIG)


def permit(folder: str | Path, code: Sequence[str | None], trust: bool, otherwise: str = "") -> None:
    """ConfigError if a run would have functions of some file called that the user has not named.

    A run directory may come from anywhere, and so may what its config names. `otherwise` tells of another way.
    """
    named = list(dict.fromkeys(ref for ref in code if is_code(ref)))
    if named and not trust:
        raise ConfigError(
            f"{folder} names code to run: {', '.join(map(str, named))}. None of it was run. If you trust it, add "
            f"--trust{otherwise}"
        )


def permit_run(
    folder: str | Path, saved: Saved, trust: bool, images: DataOptions, code: str | None = None
) -> None:
    """`permit` for what it takes to build model, data and task of a run again; `images` and `code` name some anew."""
    model, old = None if code else saved.dense.ref, saved.data
    permit(folder, [model, None if images.data else old.data, None if images.task else old.task], trust)


def trust_flag(folder: str | Path | None) -> str:
    """" --trust" if the run can only be used with it."""
    try:
        return " --trust" if folder is not None and is_started(folder) and saved_command(folder).code else ""
    except SenteiError:
        return ""


def resume_hint(folder: str | Path) -> str:
    """What to type to go on with a run."""
    return resume_command(folder) + trust_flag(folder)


def quoted(path: object) -> str:
    """A path as the shell wants it.

    >>> quoted("runs/half"), quoted("my runs/half")
    ('runs/half', "'my runs/half'")
    """
    return shlex.quote(str(path))
