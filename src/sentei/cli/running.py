"""What the commands that make a run have in common: how one begins, and what is shown at its end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from sentei.console import say
from sentei.errors import ConfigError
from sentei.runfiles import (
    clean_up,
    finished_text,
    has_progress,
    is_finished,
    is_half_cleaned,
    read_config,
    read_summary,
)

Show = Callable[[Path, Mapping[str, Any]], None]


def is_done(folder: Path, overwrite: bool) -> bool:
    """Whether nothing is left to do but to show the summary; sets the threads that a half-finished run computes with.

    ConfigError, before any work, if the folder holds a finished run that is not to be replaced. One that was killed in
    its last moment counts as interrupted, so that its command can be repeated.
    """
    if overwrite:
        return False
    if is_half_cleaned(folder):
        clean_up(folder)
        return True
    if is_finished(folder):
        raise ConfigError(finished_text(folder))
    if has_progress(folder):
        say(f"Going on with the half-finished run in {folder}")
        adopt_threads(folder)
    return False


def adopt_threads(folder: Path) -> None:
    """Compute with as many threads as the run began with, because the last bits of every result depend on them.

    An OMP_NUM_THREADS that says otherwise is left alone; the run then refuses to go on.
    """
    threads = read_config(folder)["resolved"].get("threads")
    if isinstance(threads, int) and threads > 0 and "OMP_NUM_THREADS" not in os.environ:
        if threads != torch.get_num_threads():
            say(f"Computing with {threads} threads, as the run began")
        torch.set_num_threads(threads)


def tell(show: Show, folder: Path, as_json: bool) -> None:
    """The end of a run, as its summary has it: tables, or JSON alone on stdout."""
    summary = read_summary(folder)
    if as_json:
        print_json({"run": str(folder), **{k: v for k, v in summary.items() if k != "sha256"}})
    else:
        show(folder, summary)


def print_json(result: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    sys.stdout.flush()
