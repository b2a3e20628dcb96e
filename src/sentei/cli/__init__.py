"""The command line: one verb per job."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from rich.text import Text

from sentei.cli.console import stderr
from sentei.cli.demo import Demo
from sentei.cli.evaluate import Evaluate
from sentei.cli.fidelity import FidelityCommand
from sentei.cli.inspect import Inspect
from sentei.cli.prune import method_named, prune_with, refuse_options_of_others
from sentei.cli.resume import Resume
from sentei.cli.train import Train
from sentei.errors import SenteiError
from sentei.runs import has_progress
from sentei.train.threads import set_threads

STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)
ABOUT = "Make trained convolutional networks smaller by removing channels, and prove that each cut is correct."


def commands(argv: Sequence[str]) -> Any:
    """The commands as tyro sees them; the options of `prune` are those of the method that is asked for."""
    method = method_named(argv)
    if argv[:1] == ["prune"]:
        refuse_options_of_others(argv, method)
    return (
        Annotated[Demo, tyro.conf.subcommand("demo")]
        | Annotated[Inspect, tyro.conf.subcommand("inspect")]
        | Annotated[Train, tyro.conf.subcommand("train")]
        | Annotated[prune_with(method), tyro.conf.subcommand("prune")]
        | Annotated[Resume, tyro.conf.subcommand("resume")]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[FidelityCommand, tyro.conf.subcommand("fidelity")]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 2 refused with a message, 130 interrupted.

    SENTEI_DEBUG=1 shows the traceback of an error.
    """
    command: object = None
    try:
        given = sys.argv[1:] if argv is None else list(argv)
        parsed: Any = tyro.cli(commands(given), prog="sentei", description=ABOUT, args=given, config=STYLE)
        command = parsed
        set_threads()
        parsed.execute()
    except SenteiError as error:
        if os.environ.get("SENTEI_DEBUG"):
            raise
        stderr().print(Text(f"Error: {error}", "red"), soft_wrap=not stderr().is_terminal)
        return 2
    except KeyboardInterrupt:
        stderr().print(Text(f"\nInterrupted. {_how_to_go_on(command)}", "yellow"), soft_wrap=True)
        return 130
    return 0


def _how_to_go_on(command: object) -> str:
    folder = getattr(command, "folder", None)
    if folder is None:
        return "Nothing was written."
    if has_progress(folder):
        return f"Go on with:  sentei resume {folder}"
    return f"Nothing was stored in {folder} yet; start again with the same command."
