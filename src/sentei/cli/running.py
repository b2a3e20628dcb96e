"""What the commands that make a run have in common: how one begins, and what is shown at its end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from sentei.cli.options import RunOutput
from sentei.console import say
from sentei.distributed import is_leader, processes, starts
from sentei.runfiles import SCALARS, has_progress, read_config, read_summary, refuse_finished
from sentei.runs import begins_anew
from sentei.train.scalars import tensorboard

Show = Callable[[Path, Mapping[str, Any]], None]


def begin(folder: Path, overwrite: bool = False) -> None:
    """ConfigError, before any work, if a finished run would have to be replaced; a half-finished one goes on."""
    if overwrite and begins_anew(folder):
        return
    refuse_finished(folder)
    if has_progress(folder):
        anew = f"Start {starts()} of all processes, as one has died. " if starts() > 1 else ""
        say(f"{anew}Going on with the half-finished run in {folder}")
        adopt_threads(folder)


def adopt_threads(folder: Path) -> None:
    """Compute with as many threads as the run began with, because the last bits of every result depend on them.

    An OMP_NUM_THREADS that says otherwise is left alone; the run then refuses to go on.
    """
    threads = read_config(folder)["resolved"].get("threads")
    if processes() == 1 and isinstance(threads, int) and threads > 0 and "OMP_NUM_THREADS" not in os.environ:
        if threads != torch.get_num_threads():
            say(f"Threads: {threads} instead of {torch.get_num_threads()}, as when the run began")
        torch.set_num_threads(threads)


def watched(folder: Path, output: RunOutput) -> AbstractContextManager[None]:
    """Scalars for TensorBoard while a run goes on, where they are asked for."""
    return tensorboard(folder / SCALARS if output.tensorboard and is_leader() else None)


def tell(show: Show, folder: Path, as_json: bool) -> None:
    """The end of a run, as its summary has it: tables, or JSON alone on stdout."""
    if not is_leader():
        return
    summary = read_summary(folder)
    if as_json:
        print_json({"run": str(folder), **{k: v for k, v in summary.items() if k != "sha256"}})
    else:
        show(folder, summary)


def print_json(result: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    sys.stdout.flush()
